//go:build unix

package main

import (
	"os"
	"syscall"
)

// modesHaveRights is true where the mode of a file defines who may read it.
const modesHaveRights = true

// owner returns the user and the group of a file.
func owner(info os.FileInfo) (uid, gid uint32, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return st.Uid, st.Gid, true
}
