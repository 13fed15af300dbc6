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

// Outcome is the effect of an operation that returns an error.
type Outcome string

// The outcomes.
const (
	None     Outcome = ""         // no error
	Failed   Outcome = "failed"   // not applied
	Happened Outcome = "happened" // applied
	Half     Outcome = "half"     // half of a write is applied; other operations are applied
)

// Fault makes an operation return an error.
type Fault struct {
	Op      Op
	Nth     int // number of the operation of this kind, from 1 at Inject
	Outcome Outcome
	Sticky  bool // every operation from Nth on
}

// Inject adds a fault.
func (d *FS) Inject(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, &f)
}

// Heal removes all faults.
func (d *FS) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = nil
}

// fault counts an operation for all faults and returns its outcome.
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

// Before sets a function that each goroutine calls before an operation.
func (d *FS) Before(f func(Op)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = f
}

// SetFree sets the free space of the disk, in bytes. A write of more bytes fails with ENOSPC.
func (d *FS) SetFree(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = d.used() + n
}

// Count returns the number of operations of a kind.
func (d *FS) Count(op Op) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[op]
}

// Counts returns the number of operations of each kind.
func (d *FS) Counts() map[Op]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.counts)
}

// Peak returns the maximum of Size over time.
func (d *FS) Peak() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peak
}

// Size returns the bytes of all files that have a name.
func (d *FS) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size()
}

// OpenFiles returns the names of the open files, or those under which they were opened, if they have none now.
func (d *FS) OpenFiles() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for h := range d.open {
		name := h.name
		for now, n := range d.names {
			if n == h.node {
				name = now
			}
		}
		names = append(names, name)
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

// ReadFile returns the content of a file, or nil if it does not exist.
func (d *FS) ReadFile(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.names[name]; n != nil {
		return slices.Clone(n.cache)
	}
	return nil
}

// WriteFile creates a durable file.
func (d *FS) WriteFile(name string, content []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.put(name, &inode{cache: slices.Clone(content), synced: slices.Clone(content)})
}

// RemoveFile removes a file durably.
func (d *FS) RemoveFile(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
	delete(d.durable, name)
}
