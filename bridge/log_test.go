package bridge_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool/crashfs"
)

// blockingLog is a log that waits at each line with a text until release is closed.
type blockingLog struct {
	slog.Handler
	text    string
	blocked func() // called once, when the first line waits
	release chan struct{}
}

func newBlockingLog(w io.Writer, text string) (h *blockingLog, blocked chan struct{}) {
	blocked = make(chan struct{})
	return &blockingLog{
		slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}), text,
		sync.OnceFunc(func() { close(blocked) }), make(chan struct{}),
	}, blocked
}

func (h *blockingLog) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.text) {
		h.blocked()
		<-h.release
	}
	return h.Handler.Handle(ctx, r)
}

func (h *blockingLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.Handler = h.Handler.WithAttrs(attrs)
	return &with
}

// TestReportWithLogBlocked blocks the log at the line of a condition: reports return, /status and /metrics answer,
// events are published, and the stop comes to its end. Once the log goes on, the lines of a condition come in order.
func TestReportWithLogBlocked(t *testing.T) {
	t.Parallel()
	const kept = "publishing blocked"
	f, log := newFakeBus(t), new(logBuffer)
	handler, blocked := newBlockingLog(log, kept)
	o := testOptions(t, log)
	o.Log, o.Buses = slog.New(handler), []bridge.Bus{f.bus()}
	r := start(t, o, log)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		for range 1000 {
			f.report("publish", errors.New("stuck"))
			f.report("publish", nil)
		}
		f.report("publish", errors.New("stuck for good"))
	}()
	for what, c := range map[string]chan struct{}{"the line to wait": blocked, "the reports to return": reported} {
		select {
		case <-c:
		case <-time.After(20 * time.Second):
			close(handler.release)
			t.Fatalf("waited in vain for %s", what)
		}
	}
	st := r.bus("the condition", func(b busStatus) bool { return !b.Up })
	if want := "publish: stuck for good"; strings.Join(st.Causes, "") != want {
		t.Errorf("the conditions are %q, want %s", st.Causes, want)
	}
	if status, _ := r.get("/metrics"); status != http.StatusOK {
		t.Errorf("/metrics answers %d", status)
	}
	r.mustPost("/kite", kiteBody("1", "OPEN", 1))
	f.waitStored(1)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if strings.Contains(log.String(), kept) {
		t.Error("the log was not blocked")
	}

	close(handler.release)
	log.waitFor(t, regexp.MustCompile(`lines were dropped.*lines=[1-9]`))
	last := "is over"
	for line := range strings.Lines(log.String()) {
		switch {
		case strings.Contains(line, kept):
			if last == "begins" {
				t.Errorf("it begins twice: %s", line)
			}
			last = "begins"
		case strings.Contains(line, "publishing unblocked"):
			if last == "is over" {
				t.Errorf("it is over twice: %s", line)
			}
			last = "is over"
		case strings.Contains(line, "lines were dropped"):
			last = "" // either may follow
		}
	}
}

// TestStuckWithLogBlocked blocks the log when the window is used up, and when the bus loses what it stored.
func TestStuckWithLogBlocked(t *testing.T) {
	const events = 15
	for _, text := range []string{"publishing blocked", "the bus has lost events"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeBus(t)
			f.setRule(func(*bridge.Delivery) verdict { return hold })
			handler, blocked := newBlockingLog(io.Discard, text)
			s := openOn(t, crashfs.New(t))
			b := pumpingFrom(t, s, f.bus(), slog.New(handler))
			t.Cleanup(func() { close(handler.release) }) // before the pump is stopped
			appendDeliveries(
				t,
				s,
				slices.Repeat([][]byte{bridge.NewDelivery("1", bridge.MaxInFlightBytes/10)}, events)...)
			time.Sleep(time.Minute)
			f.rewound(0, errors.New("the stream was made anew"))
			<-blocked
			time.Sleep(time.Minute)
			if up, waiting, causes := b.Bus("nats"); waiting != events {
				t.Errorf("up %v, %d waiting, %q", up, waiting, causes)
			}
		})
	}
}
