package publishers

import "github.com/postbridge/postbridge/bridge"

// Condition is one reason why events of a destination are not stored, reported for as long as it blocks anything: a
// partition or an event. Of all that is blocked the error of one is reported; with each its own, the report would change
// all the time. The publisher's lock guards it.
type Condition[K comparable] struct {
	Name   string
	Report bridge.Report

	blocked  map[K]bool
	reported K // the one whose error is reported, while it is blocked
}

// Block notes that k is blocked, and by what.
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

// Clear notes that k is not blocked any more, if it was.
func (c *Condition[K]) Clear(k K) {
	if !c.blocked[k] {
		return
	}
	delete(c.blocked, k)
	if len(c.blocked) == 0 {
		c.Report(c.Name, nil)
	}
}
