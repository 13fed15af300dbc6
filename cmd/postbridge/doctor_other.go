//go:build !linux

package main

import "errors"

func fileSystem(string) (string, error) { return "", nil }

func clockUnsynchronized() (bool, error) { return false, errors.ErrUnsupported }
