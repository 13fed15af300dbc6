// Package check tests the files under deploy: against each other, against the program, and against the formats that
// they are written in. It is a module of its own, to keep its dependencies out of postbridge's go.mod.
package check
