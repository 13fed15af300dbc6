package bridge

import (
	"net/http"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

// Handler is the ingest handler of a bridge whose spool is open.
func Handler(o Options, s *spool.Spool) (http.Handler, *Bridge) {
	b := New(o)
	b.receiver.spool.Store(s)
	b.opened.Store(&opened{spool: s})
	return b.receiver, b
}

// Limits of the look-ahead.
const (
	MaxUnacked = maxUnacked
	MaxWindow  = maxWindow
)

// RememberedOrders is how many orders are remembered at least.
const RememberedOrders = rememberedOrders

// Record is the spool record of an event.
func Record(e *Event) []byte { return newRecord(e, time.Unix(1700000000, 0)) }

// ParseRecord reads a spool record.
func ParseRecord(b []byte) (*Delivery, error) { return parseRecord(b) }
