// Package spool is the write-ahead log on local disk between the answer to a postback and the bus.
//
// Records are appended to segment files, with one write and one fsync for all waiting callers (group commit), and read
// by one cursor per bus. A cursor returns durable records only and verifies each checksum. The package does not
// interpret payloads. It uses the standard library only, and golang.org/x/sys on Windows.
//
// DESIGN.md beside this file has the guarantees and their limits, the file formats and the recovery.
package spool
