package bridge

import (
	"strings"
	"time"
)

// Tracer makes spans of postbacks and of their publication. It is called on the path of events, so it must neither fail
// nor block; it drops what it cannot deliver. It is safe for concurrent use.
type Tracer interface {
	// Request begins the span of a request to a broker's route.
	Request(broker string, arrival time.Time) RequestSpan
	// Publish makes the span of an event that a bus has. It is called only if the request's span was sampled, which may
	// have been hours and some restarts ago.
	Publish(p Publication)
}

// RequestSpan is the span of one request. It belongs to one goroutine.
type RequestSpan interface {
	// TraceParent returns the W3C trace context of the span, which goes with the event to its consumers.
	TraceParent() string
	// End ends the span when the answer is given. It is called once.
	End(o RequestOutcome)
}

// RequestOutcome is the outcome of a postback.
type RequestOutcome struct {
	Status int    // of the answer
	Fate   string // as in postbridge_postbacks_total
	Reason string // of a refusal, as in postbridge_refused_total

	EventID, OrderID string // as far as they are known
}

// Publication describes how an event got to a bus.
type Publication struct {
	Bus  string
	Fate string // as in postbridge_bus_events_total
	// Delivery is the event; its Data is no longer valid.
	*Delivery
	// Offered is when this run first published it, Done when the bus answered.
	Offered, Done time.Time
}

// sampled reports whether the trace context has the sampled flag.
func sampled(traceParent string) bool { return strings.HasSuffix(traceParent, "-01") }
