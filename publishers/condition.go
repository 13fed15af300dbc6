package publishers

import "github.com/postbridge/postbridge/bridge"

// Condition is a reason why events of a destination are not stored. It is reported while it blocks any key: a
// partition or an event. Only one blocked key's error is reported; otherwise the report would change all the time.
// The caller synchronizes.
type Condition[K comparable] struct {
	Name   string
	Report bridge.Report

	blocked  map[K]bool
	reported K // the key whose error is reported, while it is blocked
}

// Block records that err blocks k.
func (c *Condition[K]) Block(k K, err error) {
	if c.blocked == nil {
		c.blocked = make(map[K]bool)
	}
	c.blocked[k] = true
	if !c.blocked[c.reported] {
		c.reported = k
	}
	if c.reported == k {
		c.Report(c.Name, err)
	}
}

// Clear records that k is no longer blocked.
func (c *Condition[K]) Clear(k K) {
	if !c.blocked[k] {
		return
	}
	delete(c.blocked, k)
	if len(c.blocked) == 0 {
		c.Report(c.Name, nil)
	}
}
