package bridge

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// TestReporter: states are reported in order, and while Report blocks only the last state of each cause is kept.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		blocked := make(chan struct{})
		r := NewReporter(func(cause string, err error) {
			<-blocked
			if err != nil {
				cause += ": " + err.Error()
			}
			got = append(got, cause)
		})
		go r.Run(t.Context())
		r.Report("connection", nil)
		synctest.Wait() // Report blocks
		for range 1000 {
			r.Report("publish orders", errors.New("full"))
			r.Report("stream ORDERS", errors.New("missing"))
			r.Report("publish orders", nil)
		}
		if len(r.waiting) > 2 {
			t.Errorf("%d states wait", len(r.waiting))
		}
		close(blocked)
		synctest.Wait()
		if want := []string{"connection", "publish orders", "stream ORDERS: missing"}; !slices.Equal(got, want) {
			t.Errorf("reported %q, want %q", got, want)
		}
	})
}
