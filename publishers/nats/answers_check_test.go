package nats

import (
	"errors"
	"testing"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postbridge/postbridge/bridge"
)

func TestDecodeAnswer(t *testing.T) {
	d := newDestination(bridge.Orders, "", "*.*.*")
	for text, want := range map[string]jetstream.PubAck{
		`{"stream":"ORDERS","seq":42}`:                       {Stream: "ORDERS", Sequence: 42},
		`{"stream":"ORDERS","seq":18446744073709551615}`:     {Stream: "ORDERS", Sequence: 1<<64 - 1},
		`{"stream":"ORDERS", "seq":42}`:                      {Stream: "ORDERS", Sequence: 42},
		`{"stream":"ORDERS","seq":42,"duplicate": true}`:     {Stream: "ORDERS", Sequence: 42, Duplicate: true},
		`{"stream":"ORDERS","domain":"hub","seq":42}`:        {Stream: "ORDERS", Sequence: 42, Domain: "hub"},
		`{"stream":"ORDERS2","seq":42}`:                      {Stream: "ORDERS2", Sequence: 42},
		`{"type":"x","stream":"ORDERS","seq":1,"new":[1,2]}`: {Stream: "ORDERS", Sequence: 1},
	} {
		if got, err := d.decodeAnswer(&natsgo.Msg{Data: []byte(text)}); err != nil || *got != want {
			t.Errorf("%s: got %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]error{
		`{"stream":"ORDERS","seq":42`:                    jetstream.ErrInvalidJSAck,
		`{"stream":"ORDERS","seq":}`:                     jetstream.ErrInvalidJSAck,
		`{"stream":"ORDERS","seq":-1}`:                   jetstream.ErrInvalidJSAck,
		`{"stream":"ORDERS","seq":18446744073709551616}`: jetstream.ErrInvalidJSAck,
		`{}`:  jetstream.ErrInvalidJSAck,
		``:    jetstream.ErrInvalidJSAck,
		`+OK`: jetstream.ErrInvalidJSAck,
		`{"error":{"code":503,"err_code":10077},"stream":"","seq":0}`: &jetstream.APIError{ErrorCode: 10077},
	} {
		if got, err := d.decodeAnswer(&natsgo.Msg{Data: []byte(text)}); !errors.Is(err, want) {
			t.Errorf("%s: got %+v, %v, want %v", text, got, err, want)
		}
	}
	none := &natsgo.Msg{Header: natsgo.Header{"Status": {"503"}}}
	if _, err := d.decodeAnswer(none); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("no responders: %v", err)
	}
}
