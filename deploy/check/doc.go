// Package check tests the files under deploy: against each other, against the program, and against the formats that
// they are written in. It is a module of its own, so that its dependencies are none of postbridge's.
package check
