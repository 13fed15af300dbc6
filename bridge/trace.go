package bridge

import (
	"strings"
	"time"
)

// Tracer hears of each postback and of each event's way to a bus, for those who look at traces. It is on the path: it may
// neither fail nor wait for anybody, and what it cannot get rid of it has to forget. It is safe for concurrent use.
type Tracer interface {
	// Request begins the span of a request to a broker's route.
	Request(broker string, arrival time.Time) RequestSpan
	// Publish tells of an event that a bus is done with. It is called only if the request's span was sampled, which may
	// have been hours and some restarts ago.
	Publish(p Publication)
}

// RequestSpan is the span of one request. It belongs to one goroutine.
type RequestSpan interface {
	// TraceParent is the W3C trace context of the span, which goes with the event to its consumers.
	TraceParent() string
	// End ends the span when the answer is given. Called once.
	End(o RequestOutcome)
}

// RequestOutcome is what became of a postback.
type RequestOutcome struct {
	Status int    // of the answer
	Fate   string // as in postbridge_postbacks_total
	Reason string // of a refusal, as in postbridge_refused_total

	EventID, OrderID string // as far as they are known
}

// Publication is the way of an event to a bus.
type Publication struct {
	Bus  string
	Fate string // as in postbridge_bus_events_total
	// The event, of which only what addresses and describes it is valid.
	*Delivery
	// Offered is when this run first offered it to the bus, Done when the bus was done with it.
	Offered, Done time.Time
}

// sampled reports whether the trace context says that somebody records the trace.
func sampled(traceParent string) bool { return strings.HasSuffix(traceParent, "-01") }
