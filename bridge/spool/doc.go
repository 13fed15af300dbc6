// Package spool is the log on local disk between the answer to a postback and the bus.
//
// Records are appended to segment files, one write and one fsync for all that wait, and read by one cursor for each
// bus. A record is read only once it is durable; every read checks its checksum. The package knows bytes and sequence
// numbers, nothing of what they mean, and uses the standard library only, on
// Windows golang.org/x/sys too.
//
// What it promises and what not, its format and how it recovers: DESIGN.md beside this file.
package spool
