package nats_test

import (
	"context"
	"testing"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/publishers/nats"
)

// TestMirrorThatRenames: a mirror answers direct gets in place of the stream that it mirrors. If it renames what it
// copies, that is no reason to take the stream for one that does, or for one that has lost what it stored.
func TestMirrorThatRenames(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	createStream(t, js, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, AllowDirect: true})
	mirror, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "COPY", Mirror: &jetstream.StreamSource{
		Name:              "ORDERS",
		SubjectTransforms: []jetstream.SubjectTransformConfig{{Source: "orders.>", Destination: "copy.>"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	all := orders(100)
	e.publish(all[:50]...)
	conn, err := natsgo.Connect(n.url())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, "answer of the mirror", func() bool {
		m, err := conn.Request("$JS.API.DIRECT.GET.ORDERS", []byte(`{"seq":1}`), natsgo.DefaultTimeout)
		return err == nil && m.Header.Get(jetstream.StreamHeader) == "COPY"
	}, func() any { info, err := mirror.Info(context.Background()); return []any{info, err} })

	for _, d := range all[50:] {
		d.Redelivered = true // is read back
	}
	e.waitAll(e.offerAll(all[50:]))
	if all := e.all(); len(all) > 0 || e.rewound.Load() > 0 {
		t.Errorf("%q, %d times rewound", all, e.rewound.Load())
	}
}

// TestCopies: an event names the stream that it is for, and sources and mirrors take it all the same.
func TestCopies(t *testing.T) {
	t.Parallel()
	n := startServer(t, nil)
	js := n.admin(t)
	createStream(t, js, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, AllowDirect: true})
	of := &jetstream.StreamSource{Name: "ORDERS"}
	createStream(t, js, jetstream.StreamConfig{Name: "MIRROR", Mirror: of})
	createStream(t, js, jetstream.StreamConfig{Name: "SOURCED", Sources: []*jetstream.StreamSource{of}})
	e := openEdge(t, nats.Config{URL: n.url(), CreateStreams: true})
	e.publish(orders(5)...)
	for _, stream := range []string{"MIRROR", "SOURCED"} {
		eventually(t, "copy in "+stream, func() bool { return len(stored(t, js, stream)) == 5 },
			func() any { return stored(t, js, stream) })
	}
}
