// Command strategy sells what was bought: for each fill of a buy order it places one order, here it prints it. It never
// places two for one fill, and survives restarts, redelivery and loss of its stream. Beside make run, before make demo:
//
//	go run ./deploy/examples/strategy
//
// NATS_PASSWORD is that of the user strategy of deploy/nats/users.conf. STATE is a file; run one process with it. Without
// the file, this is its first start: it places nothing for events that were received before, rather never than twice.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge/event"
)

// engine is the strategy and its state, which is one file.
type engine struct {
	file    string
	Started time.Time     `json:"started"` // for the first time
	Orders  event.Tracker `json:"orders"`
	Placing *order        `json:"placing,omitempty"` // whose answer from the broker is not stored yet
}

// order is an order to be placed.
type order struct {
	Tag      string `json:"tag"` // one per fill: the broker's order book has it if the order was placed
	Side     string `json:"side"`
	Symbol   string `json:"symbol"`
	Quantity int64  `json:"quantity"`
	Bought   string `json:"bought"` // price
}

func main() {
	e := &engine{file: cmp.Or(os.Getenv("STATE"), "strategy.json"), Orders: event.Tracker{MaxOrders: 5000}}
	if err := e.load(); err != nil {
		log.Fatalf("strategy: cannot read its state: %v", err)
	}
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL),
		nats.UserInfo("strategy", os.Getenv("NATS_PASSWORD")), nats.CustomInboxPrefix("_INBOX_strategy"),
		nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true))
	if err != nil {
		log.Fatalf("strategy: %v", err)
	}
	js, _ := jetstream.New(nc)          // fails for options only
	for ; ; <-time.After(time.Second) { // it may be killed at any time
		log.Printf("strategy: waiting for the stream: %v", e.follow(js))
	}
}

// follow handles events until the stream or the durable consumer is gone; the next call creates the consumer again. It
// then starts at the beginning, and the tracker knows what was handled.
func (e *engine) follow(js jetstream.JetStream) error {
	consumer, err := js.CreateOrUpdateConsumer(context.Background(), "ORDERS", jetstream.ConsumerConfig{
		// Redelivery keeps the sequence, and after a crash comes within five seconds.
		Durable: "strategy", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1, AckWait: 5 * time.Second,
	})
	if err != nil {
		return err
	}
	for {
		message, err := consumer.Next(jetstream.FetchMaxWait(5 * time.Second))
		if errors.Is(err, nats.ErrTimeout) {
			continue // nothing new
		}
		if err != nil {
			return err
		}
		// The program ends if it cannot store its state or does not understand an event: the next run gets it again.
		if err := e.handle(message); err != nil {
			log.Fatalf("strategy: %v", err)
		}
		if err := message.Ack(); err != nil {
			return err
		}
	}
}

func (e *engine) handle(message jetstream.Msg) error {
	m, err := event.Decode(message.Data(), message.Headers().Get)
	if err != nil || m.UserID == "CANARY" {
		return err
	}
	change, err := e.Orders.Apply(&m)
	if err != nil {
		return err
	}
	if change.Corrected > 0 {
		log.Printf("strategy: %s: %d filled are taken back; check the position", m.Key(), change.Corrected)
	}
	received, _ := time.Parse(time.RFC3339, m.ReceivedAt)
	if change.NewFill == 0 || m.Side != "buy" || received.Before(e.Started) {
		return e.save()
	}
	e.Placing = &order{m.ID[:20], "sell", cmp.Or(m.Symbol, m.InstrumentID), change.NewFill, change.FillPrice}
	if err := e.save(); err != nil { // before it is placed: rather never than twice
		return err
	}
	place(e.Placing)
	e.Placing = nil
	return e.save()
}

// place stands for the request to the broker.
func place(o *order) {
	fmt.Printf("place %s: %s %d %s, bought at %s\n", o.Tag, o.Side, o.Quantity, o.Symbol, cmp.Or(o.Bought, "?"))
}

func (e *engine) load() error {
	text, err := os.ReadFile(e.file)
	if errors.Is(err, fs.ErrNotExist) {
		e.Started = time.Now()
		return e.save()
	}
	if err = cmp.Or(err, json.Unmarshal(text, e)); err == nil && e.Placing != nil {
		fmt.Printf("unsure %s: look for the tag in the broker's order book, and place it if it is missing\n", e.Placing.Tag)
	}
	return err
}

// save replaces the file, or leaves it as it is.
func (e *engine) save() error {
	f, err := os.Create(e.file + ".new")
	if err != nil {
		return err
	}
	if err := errors.Join(json.NewEncoder(f).Encode(e), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), e.file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(e.file)) // the new name has to be on disk, too
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
