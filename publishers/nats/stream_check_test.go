package nats

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

func TestDestinationNames(t *testing.T) {
	d := newDestination(bridge.Orders, "", "*.*.*")
	if d.stream != "ORDERS" || d.subjects != "orders.>" || d.needed != "orders.*.*.*" || d.prefix != "" {
		t.Errorf("without prefix: %+v", d)
	}
	d = newDestination(bridge.Deadletters, "desk1", "*")
	if d.stream != "DESK1_DEADLETTERS" || d.subjects != "desk1.deadletters.>" || d.needed != "desk1.deadletters.*" ||
		d.prefix != "desk1." {
		t.Errorf("with prefix: %+v", d)
	}
	d = newDestination(bridge.Orders, "de.ace.events", "*.*.*")
	if d.stream != "DE_ACE_EVENTS_ORDERS" || d.subjects != "de.ace.events.orders.>" || d.prefix != "de.ace.events." {
		t.Errorf("with a prefix with dots: %+v", d)
	}
}

func TestMisfit(t *testing.T) {
	d := newDestination(bridge.Orders, "", "*.*.*")
	for _, c := range []struct {
		name   string
		change func(*jetstream.StreamConfig)
		want   string // part of the error; "" for none
	}{
		{"fits", func(*jetstream.StreamConfig) {}, ""},
		{"takes everything", func(c *jetstream.StreamConfig) { c.Subjects = []string{">"} }, ""},
		{"takes what we send", func(c *jetstream.StreamConfig) { c.Subjects = []string{"other", "orders.*.*.*"} }, ""},
		{"one broker", func(c *jetstream.StreamConfig) { c.Subjects = []string{"orders.kite.>"} }, "add orders.>"},
		{"too few tokens", func(c *jetstream.StreamConfig) { c.Subjects = []string{"orders.*.*"} }, "add orders.>"},
		{"no subjects", func(c *jetstream.StreamConfig) { c.Subjects = nil }, "add orders.>"},
		{"memory", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, "memory"},
		{"work queue", func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, "workqueue"},
		{"interest", func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }, "interest"},
		{"no acks", func(c *jetstream.StreamConfig) { c.NoAck = true }, "no_ack"},
		{"sealed", func(c *jetstream.StreamConfig) { c.Sealed = true }, "sealed"},
		{"mirror", func(c *jetstream.StreamConfig) { c.Mirror = &jetstream.StreamSource{Name: "X"} }, "mirror"},
	} {
		config := jetstream.StreamConfig{
			Subjects:   []string{"orders.>"},
			Storage:    jetstream.FileStorage,
			Duplicates: duplicateWindow,
		}
		c.change(&config)
		err := d.misfit(&config)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "ORDERS")):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	d := newDestination(bridge.Orders, "", "*.*.*")
	good := jetstream.StreamConfig{
		Subjects:   []string{"orders.>"},
		Duplicates: duplicateWindow,
		MaxBytes:   1 << 30,
		Discard:    jetstream.DiscardNew,
	}
	if w := d.warnings(&good, false); w != "" {
		t.Errorf("warning %q", w)
	}
	for want, change := range map[string]func(*jetstream.StreamConfig){
		"duplicate window":     func(c *jetstream.StreamConfig) { c.Duplicates = time.Second },
		"max_msgs_per_subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 },
		"async persist":        func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"discard old":          func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
	} {
		c := good
		change(&c)
		if w := d.warnings(&c, false); !strings.Contains(w, want) {
			t.Errorf("warning %q, want %q", w, want)
		}
	}
}

func TestTakes(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"orders.>", "orders.*.*.*", true},
		{">", "orders.*.*.*", true},
		{"*.>", "orders.*.*.*", true},
		{"*.*.*.*", "orders.*.*.*", true},
		{"orders.*.*.>", "orders.*.*.*", true},
		{"orders.*.*.*.>", "orders.*.*.*", false},
		{"orders.*.*", "orders.*.*.*", false},
		{"orders.*.*.*.*", "orders.*.*.*", false},
		{"orders.kite.*.*", "orders.*.*.*", false},
		{"rejects.>", "orders.*.*.*", false},
		{"orders", "orders.*.*.*", false},
		{"orders.*", "orders.>", false},
		{"orders.>", "orders.>", true},
	} {
		if got := covers([]string{c.a}, c.b); got != c.want {
			t.Errorf("%q takes %q: %v", c.a, c.b, got)
		}
	}
}
