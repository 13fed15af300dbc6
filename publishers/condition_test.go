package publishers_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/postbridge/postbridge/publishers"
)

// TestCondition: it holds from the first that is blocked to the last, with the error of one of them at a time.
func TestCondition(t *testing.T) {
	var reports []string
	c := publishers.Condition[int]{Name: "publish orders", Report: func(name string, err error) {
		if err == nil {
			err = errors.New("ended")
		}
		reports = append(reports, name+" "+err.Error())
	}}
	c.Clear(0)
	for _, k := range []int{0, 1, 0} {
		c.Block(k, errors.New(string(rune('a'+k))))
	}
	c.Clear(0)
	c.Clear(0)
	c.Block(2, errors.New("c"))
	c.Block(1, errors.New("b"))
	c.Clear(1)
	c.Clear(2)
	c.Block(2, errors.New("d"))
	want := []string{
		"publish orders a",
		"publish orders a",
		"publish orders c",
		"publish orders ended",
		"publish orders d",
	}
	if !slices.Equal(reports, want) {
		t.Errorf("%q, want %q", reports, want)
	}
}
