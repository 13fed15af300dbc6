// Package crashfs implements spool.FS in memory for tests, with power loss, full disks and injected faults.
//
// It separates the page cache, which a process reads, from durable storage: content becomes durable with Sync; created,
// renamed and removed names become durable with SyncDir. CrashClone simulates a power loss, Restart the death of the
// process, and Kill its death during a write.
//
// It fails the test if the caller uses the disk in a way that is never correct, such as a rename before a sync.
package crashfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/postbridge/postbridge/bridge/spool"
)

// FS is an in-memory directory. It implements spool.FS.
type FS struct {
	tb testing.TB

	mu       sync.Mutex
	names    map[string]*inode // in the page cache
	durable  map[string]*inode // durable
	renames  []nameOp          // operations that turn durable into names
	locks    map[string]bool
	open     map[*handle]bool
	capacity int64 // of the disk, in bytes
	peak     int64
	counts   map[Op]int
	faults   []*Fault
	hook     func(Op)
}

// nameOp adds the name to for node and removes the name from, each unless it is empty.
type nameOp struct {
	from, to string
	node     *inode
}

// inode holds the content of a file, under any name.
type inode struct {
	cache   []byte   // page cache
	synced  []byte   // durable content
	pending []change // changes since the last Sync
	failed  bool     // a Sync failed: this process may not use the pending content any more
	doubt   int64    // offset of the pending content, if failed
}

// change is one write, or a truncation to offset if data is nil.
type change struct {
	offset int64
	data   []byte
}

// New returns an empty directory on a large disk.
func New(tb testing.TB) *FS {
	return &FS{
		tb: tb, names: map[string]*inode{}, durable: map[string]*inode{}, locks: map[string]bool{},
		open: map[*handle]bool{}, capacity: math.MaxInt64 / 2, counts: map[Op]int{},
	}
}

var _ spool.FS = (*FS)(nil)

// CrashClone returns a possible disk after a power loss: everything synced, and each unsynced write and name operation
// with probability keep, independently; writes also in part. With keep 0, rng may be nil.
func (d *FS) CrashClone(rng *rand.Rand, keep float64) *FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(d.tb)
	survived := map[*inode]*inode{}
	for name, n := range d.durable {
		c.put(name, n.crash(rng, keep, survived))
	}
	for _, op := range d.renames {
		if keep == 0 || rng.Float64() >= keep {
			continue
		}
		n := op.node.crash(rng, keep, survived)
		if op.from != "" && c.names[op.from] == n {
			delete(c.names, op.from)
			delete(c.durable, op.from)
		}
		if op.to != "" {
			c.put(op.to, n)
		}
	}
	return c
}

// Restart returns the disk after this process was killed: everything written can be read, but unsynced content is not
// durable yet, and content of a failed Sync never will be.
func (d *FS) Restart() *FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(d.tb)
	c.capacity = d.capacity
	copies := map[*inode]*inode{}
	for name, n := range d.names {
		c.names[name] = n.copy(copies)
	}
	for name, n := range d.durable {
		c.durable[name] = n.copy(copies)
	}
	for _, op := range d.renames {
		c.renames = append(c.renames, nameOp{op.from, op.to, op.node.copy(copies)})
	}
	return c
}

// Kill is Restart for a process that was killed during a write: the last unsynced write to each file is cut at a random
// length.
func (d *FS) Kill(rng *rand.Rand) *FS {
	c := d.Restart()
	for _, name := range slices.Sorted(maps.Keys(c.names)) {
		c.names[name].interrupt(rng)
	}
	return c
}

func (n *inode) interrupt(rng *rand.Rand) {
	if len(n.pending) == 0 {
		return
	}
	ch := &n.pending[len(n.pending)-1]
	if ch.data == nil || n.failed {
		return
	}
	ch.data = ch.data[:rng.IntN(len(ch.data)+1)]
	n.cache = slices.Clone(n.synced)
	for _, ch := range n.pending {
		n.cache = ch.apply(n.cache)
	}
}

// put adds a durable file.
func (d *FS) put(name string, n *inode) { d.names[name], d.durable[name] = n, n }

func (n *inode) copy(copies map[*inode]*inode) *inode {
	if copies[n] == nil {
		copies[n] = &inode{
			cache: slices.Clone(n.cache), synced: slices.Clone(n.synced), pending: slices.Clone(n.pending),
		}
	}
	return copies[n]
}

func (n *inode) crash(rng *rand.Rand, keep float64, survived map[*inode]*inode) *inode {
	if survived[n] == nil {
		b := slices.Clone(n.synced)
		for _, ch := range n.pending {
			if keep > 0 && rng.Float64() < keep {
				b = ch.part(rng, b)
			}
		}
		survived[n] = &inode{cache: b, synced: slices.Clone(b)}
	}
	return survived[n]
}

// part applies a change wholly or in part: its start, its end, some sectors, or only the new size.
func (ch change) part(rng *rand.Rand, b []byte) []byte {
	if len(ch.data) == 0 {
		return ch.apply(b)
	}
	cut := rng.IntN(len(ch.data))
	switch rng.IntN(6) {
	case 0:
		return change{ch.offset, ch.data[:cut]}.apply(b)
	case 1:
		return change{ch.offset + int64(cut), ch.data[cut:]}.apply(b)
	case 2:
		const sector = 512
		for at := 0; at < len(ch.data); at += sector {
			if rng.IntN(2) == 0 {
				b = change{ch.offset + int64(at), ch.data[at:min(at+sector, len(ch.data))]}.apply(b)
			}
		}
		return b
	case 3:
		return grow(b, ch.offset+int64(cut))
	}
	return ch.apply(b)
}

func (ch change) apply(b []byte) []byte {
	if ch.data == nil {
		return grow(b, ch.offset)[:ch.offset]
	}
	b = grow(b, ch.offset+int64(len(ch.data)))
	copy(b[ch.offset:], ch.data)
	return b
}

// grow returns b extended with zeros to at least size bytes.
func grow(b []byte, size int64) []byte {
	if more := size - int64(len(b)); more > 0 {
		b = append(b, make([]byte, more)...)
	}
	return b
}

// List implements spool.FS.
func (d *FS) List() (files []spool.FileInfo, err error) {
	err = d.do(List, func(Outcome) error {
		for name, n := range d.names {
			files = append(files, spool.FileInfo{Name: name, Size: int64(len(n.cache))})
		}
		return nil
	})
	return files, err
}

// Create implements spool.FS.
func (d *FS) Create(name string) (spool.File, error) {
	n := &inode{}
	err := d.do(Create, func(Outcome) error {
		d.rename(nameOp{to: name, node: n})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d.handle(name, n), nil
}

// Open implements spool.FS.
func (d *FS) Open(name string) (spool.File, error) {
	var n *inode
	err := d.do(Open, func(Outcome) error {
		n = d.names[name]
		return d.exists(name)
	})
	if err != nil {
		return nil, err
	}
	return d.handle(name, n), nil
}

// Rename implements spool.FS.
func (d *FS) Rename(from, to string) error {
	return d.do(Rename, func(Outcome) error {
		if err := d.exists(from); err != nil {
			return err
		}
		n := d.names[from]
		// A name like this is of a file without a use.
		if (len(n.pending) > 0 || n.failed) && !strings.HasSuffix(to, ".tmp") {
			d.tb.Errorf("%s is renamed to %s before its content is synced", from, to)
		}
		d.rename(nameOp{from: from, to: to, node: n})
		return nil
	})
}

// Remove implements spool.FS.
func (d *FS) Remove(name string) error {
	return d.do(Remove, func(Outcome) error {
		if err := d.exists(name); err != nil {
			return err
		}
		d.rename(nameOp{from: name, node: d.names[name]})
		return nil
	})
}

// SyncDir implements spool.FS.
func (d *FS) SyncDir() error {
	return d.do(SyncDir, func(Outcome) error {
		d.durable, d.renames = map[string]*inode{}, nil
		for name, n := range d.names {
			d.durable[name] = n
		}
		return nil
	})
}

// Free implements spool.FS.
func (d *FS) Free() (free int64, err error) {
	err = d.do(Free, func(Outcome) error {
		free = d.capacity - d.used()
		return nil
	})
	return free, err
}

// Lock implements spool.FS.
func (d *FS) Lock(name string) (io.Closer, error) {
	err := d.do(Lock, func(Outcome) error {
		if d.locks[name] {
			return spool.ErrLocked
		}
		d.locks[name] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	return unlocker{d, name}, nil
}

type unlocker struct {
	d    *FS
	name string
}

func (u unlocker) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	delete(u.d.locks, u.name)
	return nil
}

func (d *FS) exists(name string) error {
	if d.names[name] == nil {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return nil
}

func (d *FS) rename(op nameOp) {
	delete(d.names, op.from)
	if op.to != "" {
		d.names[op.to] = op.node
	}
	d.renames = append(d.renames, op)
}

func (d *FS) handle(name string, n *inode) *handle {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := &handle{d: d, name: name, node: n}
	d.open[h] = true
	return h
}

// used returns the bytes of all files, including removed files that are open.
func (d *FS) used() int64 {
	seen, sum := map[*inode]bool{}, int64(0)
	add := func(n *inode) {
		if !seen[n] {
			seen[n] = true
			sum += int64(len(n.cache))
		}
	}
	for _, n := range d.names {
		add(n)
	}
	for h := range d.open {
		add(h.node)
	}
	return sum
}

// handle is an open file.
type handle struct {
	d    *FS
	name string
	node *inode
}

// do runs an operation on an open file.
func (h *handle) do(op Op, apply func(Outcome) error) error {
	return h.d.do(op, func(outcome Outcome) error {
		if !h.d.open[h] {
			h.d.tb.Errorf("%v of %s, which is closed", op, h.name)
			return fs.ErrClosed
		}
		if h.node.failed && op != Read && op != Close {
			h.d.tb.Errorf("%v of %s after a sync of it failed", op, h.name)
		}
		return apply(outcome)
	})
}

func (h *handle) ReadAt(b []byte, offset int64) (n int, err error) {
	err = h.do(Read, func(Outcome) error {
		if h.node.failed && offset+int64(len(b)) > h.node.doubt {
			h.d.tb.Errorf("%s is read after a sync of it failed", h.name)
		}
		if offset < int64(len(h.node.cache)) {
			n = copy(b, h.node.cache[offset:])
		}
		if n < len(b) {
			return io.EOF
		}
		return nil
	})
	return n, err
}

func (h *handle) WriteAt(b []byte, offset int64) (n int, err error) {
	err = h.do(Write, func(outcome Outcome) error {
		n = len(b)
		if outcome == Half {
			n = len(b) / 2
		}
		var full error
		more := offset + int64(n) - int64(len(h.node.cache))
		if free := max(0, h.d.capacity-h.d.used()); more > free {
			n -= int(min(int64(n), more-free))
			full = syscall.ENOSPC
		}
		h.node.change(change{offset, append([]byte{}, b[:n]...)})
		return full
	})
	return n, err
}

func (h *handle) Truncate(size int64) error {
	return h.do(Truncate, func(Outcome) error {
		h.node.change(change{offset: size})
		return nil
	})
}

func (h *handle) Sync() error {
	return h.do(Sync, func(outcome Outcome) error {
		n := h.node
		if outcome != None {
			n.failed, n.doubt = true, n.firstPending()
		}
		// After a failed fsync the kernel may mark pages clean: they can be read, but never reach the disk.
		if outcome != Failed {
			for _, ch := range n.pending {
				n.synced = ch.apply(n.synced)
			}
		}
		n.pending = nil
		return nil
	})
}

func (h *handle) Close() error {
	return h.do(Close, func(Outcome) error {
		delete(h.d.open, h)
		return nil
	})
}

func (n *inode) change(ch change) {
	n.cache = ch.apply(n.cache)
	n.pending = append(n.pending, ch)
}

func (n *inode) firstPending() int64 {
	first := int64(len(n.cache))
	for _, ch := range n.pending {
		first = min(first, ch.offset)
	}
	return first
}

// errInjected is the error of every Fault.
var errInjected = errors.New("injected fault")

// do counts an operation, and applies it unless a fault prevents it. Sync handles its own failure, and Close always
// closes the file.
func (d *FS) do(op Op, apply func(Outcome) error) error {
	d.mu.Lock()
	if hook := d.hook; hook != nil {
		d.mu.Unlock()
		hook(op)
		d.mu.Lock()
	}
	defer d.mu.Unlock()
	d.counts[op]++
	outcome := d.fault(op)
	if outcome != Failed || op == Sync || op == Close {
		if err := apply(outcome); err != nil {
			return err
		}
	}
	d.peak = max(d.peak, d.size())
	if outcome != None {
		return fmt.Errorf("%v: %w", op, errInjected)
	}
	return nil
}

// size returns the bytes of all files that have a name.
func (d *FS) size() (sum int64) {
	for _, n := range d.names {
		sum += int64(len(n.cache))
	}
	return sum
}
