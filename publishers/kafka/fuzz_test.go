package kafka

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/postbridge/postbridge/publishers"
)

// FuzzNote has any text as the note in a cursor: it is written again as it was, or refused as a whole.
func FuzzNote(f *testing.F) {
	f.Add([]byte("cluster c\norders 0 1 2 3 4\nrejects 1 5 6 7 8\n"))
	f.Add([]byte("cluster \n"))
	f.Add([]byte("cluster c\norders 0 1 2 3 4"))
	f.Add([]byte("orders 0 1 99999 3 4\n"))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n := new(savedState)
		if err := n.parse(text); err != nil {
			if len(n.partitions) > 0 {
				t.Errorf("%q is refused, and %d of its partitions are not", text, len(n.partitions))
			}
			return
		}
		again := new(savedState)
		once := bytes.Clone(n.encode(0))
		if err := again.parse(once); err != nil || !bytes.Equal(again.encode(0), once) {
			t.Errorf("%q became %q, then %q, %v", text, once, again.encode(0), err)
		}
	})
}

// FuzzRecord reads a record of a partition, which anybody may have written: it is one of ours, or of no use.
func FuzzRecord(f *testing.F) {
	f.Add(int64(0), headerSpool, []byte("0badcafe"), headerSequence, []byte("00000000000000000042"))
	f.Add(int64(1<<40), headerSequence, []byte("-1"), headerSpool, []byte("0badcafe"))
	f.Add(int64(-1), headerSequence, []byte("18446744073709551616"), headerSequence, []byte("1"))
	f.Fuzz(func(t *testing.T, offset int64, key1 string, value1 []byte, key2 string, value2 []byte) {
		checkpoints, _ := publishers.LoadCheckpoints(nil, publishers.BlindFor, nil)
		p := &Publisher{checkpoints: checkpoints, spool: "0badcafe"}
		w := &partitionWriter{p: p, topic: new(topic), index: newIndex()}
		headers := []protocol.Header{{Key: key1, Value: value1}, {Key: key2, Value: value2}}
		w.addRecord(&protocol.Record{Offset: offset, Headers: headers})
		named := key1 == headerSpool && string(value1) == w.p.spool ||
			key2 == headerSpool && string(value2) == w.p.spool
		_, highest := w.index.window[w.index.high]
		if w.index.seen > 0 && (!named || !highest || !w.index.covers(w.index.high)) {
			t.Errorf("found %v at %d", w.index.window, offset)
		}
		if w.at.offset != offset+1 {
			t.Errorf("goes on at %d behind %d", w.at.offset, offset)
		}
	})
}

// FuzzBroker takes what is written for a Kafka broker, and shows nothing that looks like a login.
func FuzzBroker(f *testing.F) {
	for _, broker := range []string{"b:9092", "[::1]:9092", "u:p@b:9092", ":1", "b:0", "b:99999", "b"} {
		f.Add(broker)
	}
	f.Fuzz(func(t *testing.T, broker string) {
		if strings.Contains(broker, "@") && (isHostPort(broker) || quoteBroker(broker) != "an entry with @") {
			t.Errorf("%q is taken for a broker, or shown", broker)
		}
		if isHostPort(broker) {
			if _, err := net.ResolveTCPAddr("tcp", "127.0.0.1:"+broker[strings.LastIndex(broker, ":")+1:]); err != nil {
				t.Errorf("%q: %v", broker, err)
			}
		}
	})
}
