package spool

import "math"

// SaveNow saves the cursor as the writer and the saver do, at any time.
func (c *Cursor) SaveNow() error { return c.s.saveCursor(c, math.MaxUint64, 0) }
