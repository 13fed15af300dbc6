package bridge

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/bridge/spool"
)

// openWait is how long a verified postback waits for the spool to be opened.
const openWait = 2 * time.Second

// receiver is the ingest handler: route, verify, normalize, append, answer.
type receiver struct {
	// Immutable.
	brokers    map[string]*route
	maxBody    int64
	reload     func() bool
	tracer     Tracer // nil if nobody traces
	log        *slog.Logger
	metrics    *ingestMetrics
	budget     *budget   // of bodies that are not small
	intakes    sync.Pool // of *intake
	gunzippers sync.Pool // of *gunzipper

	opened  chan struct{}               // closed when the spool is open
	spool   atomic.Pointer[spool.Spool] // nil until then
	door    sync.Mutex                  // guards waiting, and is held while the spool becomes open
	waiting []*handedIn                 // events that wait for the spool, in the order in which they came
	failing atomic.Bool                 // the last append failed; its change is logged
	leaving atomic.Bool                 // the stop has begun: not ready, and connections end with their request
	last    lastAccepted
	recent  *recent // nil without the page
	limiter *refusalLimiter

	logged logLimit // of refusals, by broker and reason
}

// route is one broker's way in.
type route struct {
	Broker
	count *brokerMetrics
}

// answer is what one postback is told, and the fate it is counted under.
type answer struct {
	status int
	fate   fate
	reason string // of a refusal
	id     string // of the event, if status is 200
	detail string // otherwise
	order  string // its id, if it is known
}

func newReceiver(o Options, m *ingestMetrics) *receiver {
	r := &receiver{
		brokers:    make(map[string]*route),
		maxBody:    o.MaxBody,
		reload:     o.Reload,
		tracer:     o.Tracer,
		log:        o.Log,
		metrics:    m,
		budget:     newBudget(max(leastBudget, 4*o.MaxBody)),
		intakes:    sync.Pool{New: func() any { return new(intake) }},
		gunzippers: sync.Pool{New: func() any { return new(gunzipper) }},
		opened:     make(chan struct{}),
		last:       newLastAccepted(),
		limiter:    newRefusalLimiter(),
	}
	if o.AdminPage {
		r.recent = newRecent()
	}
	for _, b := range o.Brokers {
		r.brokers[b.Name()] = &route{b, m.broker(b.Name())}
	}
	return r
}

// ServeHTTP takes one postback and answers it. A request whose path names no broker is no postback and is not counted.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	arrival := time.Now()
	if r.leaving.Load() {
		w.Header().Set("Connection", "close")
	}
	to, pathToken, found := r.route(req)
	if to == nil {
		writeAnswer(w, answer{status: http.StatusNotFound, detail: "no such route"})
		return
	}
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeAnswer(w, answer{status: http.StatusMethodNotAllowed, detail: "a postback is a POST"})
		return
	}
	to.count.received.Add(1)
	var span RequestSpan
	traceParent := ""
	if r.tracer != nil {
		span = r.tracer.Request(to.Name(), arrival)
		traceParent = span.TraceParent()
	}
	a := answer{status: http.StatusNotFound, fate: refused, reason: "route", detail: "no such route"}
	if found {
		a = r.receive(w, req, to, pathToken, arrival, traceParent)
	}
	to.count.fates[a.fate].Add(1)
	if a.fate == refused {
		r.metrics.refused.WithLabelValues(to.Name(), a.reason).Inc()
		r.logRefused(to.Name(), a, req.RemoteAddr)
		if a.status != http.StatusServiceUnavailable && r.limiter.tooMany(req.RemoteAddr, arrival) {
			r.metrics.limited.WithLabelValues(to.Name()).Inc()
			a.status, a.detail = http.StatusTooManyRequests, "too many postbacks from there were refused"
		}
	}
	writeAnswer(w, a)
	r.metrics.answerSeconds.Observe(time.Since(arrival).Seconds())
	if span != nil {
		span.End(RequestOutcome{Status: a.status, Fate: a.fate.String(), Reason: a.reason, EventID: a.id, OrderID: a.order})
	}
	if a.id != "" && r.log.Enabled(req.Context(), slog.LevelDebug) {
		r.log.Debug("a postback is "+a.fate.String(), "broker", to.Name(), "id", a.id, "order_id", a.order)
	}
}

// logRefused logs a refusal.
func (r *receiver) logRefused(broker string, a answer, from string) {
	if r.logged.allow(broker + " " + a.reason) {
		r.log.Warn("postbacks are refused; postbridge_refused_total counts them",
			"broker", broker, "status", a.status, "reason", a.reason, "detail", a.detail, "from", from)
	}
}

// route returns the broker that the path names, nil if it names none, and the token behind it, if any. It ignores
// trailing and doubled slashes. A path that goes on behind the token is not found.
func (r *receiver) route(req *http.Request) (to *route, pathToken string, found bool) {
	name, rest, _ := strings.Cut(strings.Trim(req.URL.EscapedPath(), "/"), "/")
	pathToken = strings.TrimLeft(rest, "/")
	return r.brokers[name], pathToken, !strings.Contains(pathToken, "/")
}

func (r *receiver) receive(w http.ResponseWriter, req *http.Request, to *route, pathToken string, arrival time.Time, traceParent string) answer {
	in := r.intakes.Get().(*intake)
	defer r.release(in)
	body, no := r.readBody(w, req, in)
	if no != nil {
		return *no
	}
	p := &in.postback
	p.Reset(pathToken, queryToken(req), body)
	verifiedBy, err := r.verify(to, p)
	if err != nil {
		return refusal(err)
	}
	connectionOf(req).work()
	e := NewEvent(to, p, verifiedBy, arrival)
	in.record = appendRecord(in.record[:0], e, arrival, traceParent)
	a, sequence := r.append(e, in.record)
	a.order = e.OrderID
	if r.recent != nil && a.fate == accepted {
		r.recent.add(sequence, e)
	}
	return a
}

func queryToken(req *http.Request) string {
	if req.URL.RawQuery == "" {
		return ""
	}
	return req.URL.Query().Get("token")
}

// verify verifies the postback. Before it rejects one, it has the files of secrets read again: one may just have been rotated.
func (r *receiver) verify(b Broker, p *Postback) (verifiedBy string, err error) {
	verifiedBy, err = b.Verify(p)
	var no *Refusal
	if errors.As(err, &no) && (no.Status == http.StatusUnauthorized || no.Status == http.StatusForbidden) &&
		r.reload != nil && r.reload() {
		return b.Verify(p)
	}
	return verifiedBy, err
}

// refusal is the answer to what Verify refused.
func refusal(err error) answer {
	var no *Refusal
	if !errors.As(err, &no) {
		no = &Refusal{Status: http.StatusForbidden, Reason: "proof", Detail: "the postback is not proven"}
	}
	return answer{status: no.Status, fate: refused, reason: no.Reason, detail: no.Detail}
}

// append puts the event on disk, unless it repeats the last state of its order, and answers only then. The sequence is its
// number in the spool.
func (r *receiver) append(e *event.Event, record []byte) (a answer, sequence uint64) {
	s := r.spool.Load()
	var ticket spool.Ticket
	var repeats bool
	var err error
	if s != nil {
		ticket, repeats, err = r.last.append(s, e, record)
	} else {
		h := &handedIn{event: e, record: record}
		if s = r.awaitSpool(h); s == nil {
			return answer{status: http.StatusServiceUnavailable, fate: failed, detail: "not ready"}, 0
		}
		ticket, repeats, err = h.ticket, h.repeats, h.err
	}
	if err == nil {
		sequence, err = s.Wait(ticket)
	}
	if !repeats {
		r.noteFailing(err)
	}
	switch {
	case err != nil:
		return answer{status: http.StatusServiceUnavailable, fate: failed, detail: "cannot be kept now"}, 0
	case repeats:
		return answer{status: http.StatusOK, fate: repeated, id: e.ID}, sequence
	default:
		return answer{status: http.StatusOK, fate: accepted, id: e.ID}, sequence
	}
}

// handedIn is an event that came before the spool was open, and what came of it once that is open.
type handedIn struct {
	event  *event.Event
	record []byte

	ticket  spool.Ticket
	repeats bool
	err     error
}

func (h *handedIn) append(r *receiver, s *spool.Spool) {
	h.ticket, h.repeats, h.err = r.last.append(s, h.event, h.record)
}

// open makes the spool the one that events are appended to. First come those that waited for it, in their order: the
// states of one order may be among them.
func (r *receiver) open(s *spool.Spool) {
	r.door.Lock()
	defer r.door.Unlock()
	for _, h := range r.waiting {
		h.append(r, s)
	}
	r.waiting = nil
	r.spool.Store(s)
	close(r.opened)
}

// awaitSpool has open append the event and returns the spool. It waits for up to openWait, and returns nil if that is
// too short. Only verified postbacks wait, and each holds its connection and its share of the body budget meanwhile.
func (r *receiver) awaitSpool(h *handedIn) *spool.Spool {
	r.door.Lock()
	if s := r.spool.Load(); s != nil {
		h.append(r, s)
		r.door.Unlock()
		return s
	}
	r.waiting = append(r.waiting, h)
	r.door.Unlock()
	timeout := time.NewTimer(openWait)
	defer timeout.Stop()
	select {
	case <-r.opened:
	case <-timeout.C:
	}
	r.door.Lock()
	defer r.door.Unlock()
	r.waiting = slices.DeleteFunc(r.waiting, func(other *handedIn) bool { return other == h })
	return r.spool.Load()
}

// noteFailing logs when proven postbacks begin and cease to be answered 503.
func (r *receiver) noteFailing(err error) {
	switch {
	case err == nil && r.failing.Load() && r.failing.Swap(false):
		r.log.Info("the spool takes postbacks again")
	case err != nil && !r.failing.Swap(true):
		r.log.Error("postbacks are answered 503", "error", err)
	}
}

// appendRecord appends the spool record of an event. Without a trace context of a tracer it gets one of its own.
func appendRecord(b []byte, e *event.Event, arrival time.Time, traceParent string) []byte {
	if traceParent == "" {
		traceParent = newTraceParent()
	}
	d := Delivery{
		ID: e.ID, Broker: e.Broker, UserID: e.UserID, OrderID: e.OrderID, Status: e.Status,
		ReceivedAt:  arrival,
		TraceParent: traceParent,
		Deadletter:  !e.Understood(),
	}
	return e.Append(d.appendHead(b))
}

// newTraceParent starts a trace: what a postback brings along is nobody's to be trusted with. It is not sampled.
func newTraceParent() string {
	var id [24]byte
	for i := 0; i < len(id); i += 8 {
		binary.BigEndian.PutUint64(id[i:], rand.Uint64()|1) // neither id may be all zeros
	}
	text := [55]byte{'0', '0', '-', 35: '-', 52: '-', 53: '0', 54: '0'}
	hex.Encode(text[3:], id[:16])
	hex.Encode(text[36:], id[16:])
	return string(text[:])
}

// writeAnswer writes the status and a short JSON body.
func writeAnswer(w http.ResponseWriter, a answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	var body string
	if a.status == http.StatusOK {
		body = `{"status":"ok","id":"` + a.id + `"}` + "\n"
	} else {
		body = `{"status":"error","error":` + strconv.Quote(a.detail) + "}\n"
	}
	switch a.status {
	case http.StatusServiceUnavailable:
		// Jittered, so that those who were refused together do not come back together.
		h.Set("Retry-After", strconv.Itoa(1+rand.IntN(5)))
	case http.StatusTooManyRequests:
		h.Set("Retry-After", strconv.Itoa(int(refusalsForgotten.Seconds())))
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, body) // who no longer listens is not told
}
