// Package check tests what is deployed with postbridge: that files fit each other, and the program and the formats they
// are for. It is a module of its own, so that what it needs is no dependency of postbridge.
package check
