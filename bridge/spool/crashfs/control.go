package crashfs

import (
	"maps"
	"slices"
)

// Op is a kind of operation on a directory or on a file.
type Op string

// The operations.
const (
	List     Op = "List"
	Create   Op = "Create"
	Open     Op = "Open"
	Rename   Op = "Rename"
	Remove   Op = "Remove"
	SyncDir  Op = "SyncDir"
	Free     Op = "Free"
	Lock     Op = "Lock"
	Read     Op = "Read"
	Write    Op = "Write"
	Truncate Op = "Truncate"
	Sync     Op = "Sync"
	Close    Op = "Close"
)

// Outcome is what becomes of an operation that returns an error.
type Outcome string

// The outcomes.
const (
	None     Outcome = ""         // there is no error
	Failed   Outcome = "failed"   // it did not happen
	Happened Outcome = "happened" // it did, all the same
	Half     Outcome = "half"     // a write did as far as its middle; any other operation happened
)

// Fault makes an operation return an error.
type Fault struct {
	Op      Op
	Nth     int // which of the operations of this kind, counted from 1 since Inject
	Outcome Outcome
	Sticky  bool // all of them from there on
}

// Inject adds a fault.
func (d *FS) Inject(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, &f)
}

// Heal takes all faults away.
func (d *FS) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = nil
}

// fault returns what an operation that starts now comes to.
func (d *FS) fault(op Op) Outcome {
	outcome := None
	for _, f := range d.faults {
		if f.Op != op {
			continue
		}
		f.Nth--
		if f.hits() {
			outcome = f.Outcome
		}
	}
	return outcome
}

func (f *Fault) hits() bool { return f.Nth == 0 || f.Sticky && f.Nth < 0 }

// Before has f called before each operation, by the goroutine that is about to do it.
func (d *FS) Before(f func(Op)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = f
}

// SetFree sets how many bytes more the disk can hold now. A write of more than there is room for fails.
func (d *FS) SetFree(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = d.used() + n
}

// Count returns how many operations of a kind there were.
func (d *FS) Count(op Op) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[op]
}

// Counts returns how many operations of each kind there were.
func (d *FS) Counts() map[Op]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.counts)
}

// Peak returns the most bytes that the files ever had together.
func (d *FS) Peak() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peak
}

// Size returns how many bytes the files have together.
func (d *FS) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size()
}

// OpenFiles returns the names of the open files, as they were when they were opened.
func (d *FS) OpenFiles() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for h := range d.open {
		names = append(names, h.name)
	}
	slices.Sort(names)
	return names
}

// Names returns the names of the files.
func (d *FS) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names))
}

// ReadFile returns the content of a file, nil if there is none.
func (d *FS) ReadFile(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.names[name]; n != nil {
		return slices.Clone(n.cache)
	}
	return nil
}

// WriteFile makes a file that is durable.
func (d *FS) WriteFile(name string, content []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.put(name, &inode{cache: slices.Clone(content), synced: slices.Clone(content)})
}

// RemoveFile removes a file for good.
func (d *FS) RemoveFile(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
	delete(d.durable, name)
}
