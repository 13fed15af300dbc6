//go:build !linux

package main

import (
	"errors"
	"math"
)

func fileSystem(string) string { return "" }

func clockUnsynchronized() (bool, error) { return false, errors.ErrUnsupported }

func openFiles() int { return math.MaxInt32 }
