package nats_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/publishers/nats"
)

// unacked is how many events may be un-acknowledged, as the pump has it.
const unacked = 8192

func benchEvent(i, keys int, data []byte) *bridge.Delivery {
	return &bridge.Delivery{
		Spool: "0badcafe", Sequence: uint64(i + 1), ID: "00112233445566778899aabbccddeeff", Broker: "kite",
		UserID: fmt.Sprint("AB", i%keys), OrderID: "220303000308932", Status: event.StatusOpen, ReceivedAt: time.Now(),
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", Data: data,
	}
}

// BenchmarkPublish measures events of 1 KiB on their way to the embedded server in this process.
func BenchmarkPublish(b *testing.B) {
	for _, keys := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) { benchmarkPublish(b, keys) })
	}
}

func benchmarkPublish(b *testing.B, keys int) {
	server := &nats.EmbeddedConfig{Listen: "127.0.0.1:0", StoreDir: b.TempDir()}
	p, err := nats.Open(
		nats.Config{Embedded: server, CreateStreams: true},
		bridge.Opening{Report: func(string, error) {}, Spool: "0badcafe", SaveState: func() error { return nil }},
		slog.New(slog.DiscardHandler),
	)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	data := bytes.Repeat([]byte("x"), 1024)
	room := make(chan struct{}, unacked)
	var all sync.WaitGroup
	done := func(err error) {
		if err != nil {
			b.Error(err)
		}
		<-room
		all.Done()
	}
	publish := func(i int) {
		room <- struct{}{}
		all.Add(1)
		p.Publish(context.Background(), benchEvent(i, keys, data), done)
	}
	publish(0) // connected, streams made
	all.Wait()
	b.ReportAllocs()
	b.SetBytes(1024)
	i := 1
	for b.Loop() {
		publish(i)
		i++
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkBare is what to compare BenchmarkPublish with: the same messages and headers through the library alone,
// without order, retry or lookup.
func BenchmarkBare(b *testing.B) {
	n := startServer(b, func(o *server.Options) { o.SyncInterval = time.Second }) // as the embedded one
	nc, err := natsgo.Connect("", natsgo.InProcessServer(n.server))
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(
		nc,
		jetstream.WithPublishAsyncMaxPending(4096),
		jetstream.WithPublishAsyncTimeout(5*time.Second),
	)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: "ORDERS", Subjects: []string{"orders.>"}, AllowDirect: true, Duplicates: 2 * time.Minute,
	}); err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 1024)
	b.ReportAllocs()
	b.SetBytes(1024)
	i := 1
	for b.Loop() {
		d := benchEvent(i, 100, data)
		m := &natsgo.Msg{Subject: d.Subject(bridge.Orders), Data: d.Data, Header: natsgo.Header{
			"Nats-Msg-Id": {d.MsgID()}, "ce-datacontenttype": {bridge.ContentType}, "traceparent": {d.TraceParent},
		}}
		for _, a := range d.Attributes() {
			m.Header["ce-"+a[0]] = []string{a[1]}
		}
		if _, err := js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute)); err != nil {
			b.Fatal(err)
		}
		i++
	}
	<-js.PublishAsyncComplete()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
