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

// receiver is the ingest handler: route, read, verify, normalize, append, answer.
type receiver struct {
	// Immutable.
	brokers    map[string]*route
	maxBody    int64
	reload     func() bool
	tracer     Tracer // nil without tracing
	log        *slog.Logger
	metrics    *ingestMetrics
	budget     *budget   // of bodies that are not small
	intakes    sync.Pool // of *intake
	gunzippers sync.Pool // of *gunzipper

	opened  chan struct{}               // closed when the spool is open
	spool   atomic.Pointer[spool.Spool] // nil until then
	opening sync.Mutex                  // guards waiting; held while the waiting events are appended
	waiting []*func(*spool.Spool)       // append the events that wait for the spool, in the order of their arrival
	failing atomic.Bool                 // the last append failed; changes are logged
	leaving atomic.Bool                 // the stop has begun: not ready, and each answer closes its connection
	last    lastAccepted
	recent  *recent // nil without the page
	limiter *refusalLimiter

	logged logLimit // of refusals, by broker and reason
}

// route is the route of one broker.
type route struct {
	Broker
	policy Policy
	count  *brokerMetrics
}

// answer is the answer to one postback, and the fate it is counted under.
type answer struct {
	status int
	fate   fate
	reason string // of a refusal
	id     string // of the event, if status is 200 and the request is a postback
	detail string // otherwise
	remedy string // of a refusal, for the log; "" if there is none
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
		r.recent = new(recent)
	}
	for _, b := range o.Brokers {
		r.brokers[b.Name()] = &route{b, policyOf(b), m.broker(b.Name())}
	}
	return r
}

// ServeHTTP answers one postback. A request whose path names no broker is no postback and is not counted.
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
		writeAnswer(w, to.answerMethod(w, req.Method))
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
			a.status, a.detail = http.StatusTooManyRequests, "too many refused postbacks from this address"
		}
	}
	writeAnswer(w, a)
	r.metrics.answerSeconds.Observe(time.Since(arrival).Seconds())
	if span != nil {
		span.End(RequestOutcome{
			Status: a.status, Fate: a.fate.String(), Reason: a.reason, EventID: a.id, OrderID: a.order,
		})
	}
	if a.id != "" && r.log.Enabled(req.Context(), slog.LevelDebug) {
		r.log.Debug("postback "+a.fate.String(), "broker", to.Name(), "id", a.id, "order_id", a.order)
	}
}

// logRefused logs a refusal, once a minute for each broker and reason.
func (r *receiver) logRefused(broker string, a answer, from string) {
	if !r.logged.allow(broker + " " + a.reason) {
		return
	}
	attrs := []any{"broker", broker, "status", a.status, "reason", a.reason, "detail", a.detail, "from", from}
	if a.remedy != "" {
		attrs = append(attrs, "remedy", a.remedy)
	}
	r.log.Warn("postbacks refused; postbridge_refused_total counts them", attrs...)
}

// route returns the broker that the path names, nil if it names none, and the token behind it, if any. It ignores
// trailing and doubled slashes. A path that continues after the token is not found.
func (r *receiver) route(req *http.Request) (to *route, pathToken string, found bool) {
	name, rest, _ := strings.Cut(strings.Trim(req.URL.EscapedPath(), "/"), "/")
	pathToken = strings.TrimLeft(rest, "/")
	return r.brokers[name], pathToken, !strings.Contains(pathToken, "/")
}

// answerMethod returns the answer to a request that is not a POST.
func (to *route) answerMethod(w http.ResponseWriter, method string) answer {
	allowed := []string{http.MethodPost}
	if to.policy.AnswerProbes {
		allowed = append(allowed, http.MethodGet, http.MethodHead)
	}
	if slices.Contains(allowed, method) {
		return answer{status: http.StatusOK}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return answer{status: http.StatusMethodNotAllowed, detail: "a postback is a POST"}
}

// receive reads, verifies, normalizes and stores one postback, and returns the answer.
func (r *receiver) receive(
	w http.ResponseWriter, req *http.Request, to *route, pathToken string, arrival time.Time, traceParent string,
) answer {
	in := r.intakes.Get().(*intake)
	defer func() { r.release(in) }()
	body, no := r.readBody(w, req, in, to.policy.KeepUnreadable)
	if no != nil && (!to.policy.KeepUnreadable || no.status == http.StatusServiceUnavailable) {
		return *no
	}
	conn := connectionOf(req)
	if no == nil {
		conn.answer()
	}
	p := &in.postback
	p.Reset(pathToken, queryToken(req), body)
	if no != nil {
		p.markUnreadable()
	}
	verifiedBy, err := r.verify(to, p)
	if err != nil {
		return refusal(err)
	}
	if no != nil && r.logged.allow(to.Name()+" unreadable") {
		r.log.Warn("a verified postback cannot be read and becomes a dead letter",
			"broker", to.Name(), "detail", no.detail, "from", req.RemoteAddr)
	}
	conn.work()
	e := Normalize(to.Broker, p, verifiedBy, arrival)
	in.record = appendRecord(in.record[:0], e, arrival, traceParent)
	t := r.append(e, in.record)
	e.Raw, e.RawBase64 = nil, nil // they are in the memory of the intake
	if in.taken == 0 {
		r.release(in) // the next postback gets it while it is in the processor's cache, and this one waits for the disk
		in = nil
	}
	a, sequence := r.wait(e, t)
	a.order = e.OrderID
	if r.recent != nil && a.fate == accepted {
		r.recent.add(sequence, e, len(body))
	}
	return a
}

// queryToken returns the parameter token of the query, or "".
func queryToken(req *http.Request) string {
	if req.URL.RawQuery == "" {
		return ""
	}
	return req.URL.Query().Get("token")
}

// verify verifies the postback. Before it rejects one, it has the secret files read again: a secret may just have been
// rotated.
func (r *receiver) verify(b Broker, p *Postback) (verifiedBy string, err error) {
	verifiedBy, err = b.Verify(p)
	no, ok := errors.AsType[*Refusal](err)
	if ok && (no.Status == http.StatusUnauthorized || no.Status == http.StatusForbidden) &&
		r.reload != nil && r.reload() {
		return b.Verify(p)
	}
	return verifiedBy, err
}

// refusal returns the answer to a postback that is not verified.
func refusal(err error) answer {
	no, ok := errors.AsType[*Refusal](err)
	if !ok {
		no = &Refusal{Status: http.StatusForbidden, Reason: "proof", Detail: "the postback is not verified"}
	}
	return answer{status: no.Status, fate: refused, reason: no.Reason, detail: no.Detail, remedy: no.Remedy}
}

// appended is an event that was appended to the spool, or not.
type appended struct {
	spool   *spool.Spool // nil if it is not open
	ticket  spool.Ticket
	repeats bool // the last event of its order, whose ticket it has
	err     error
}

// append appends the event to the spool, unless it repeats the last event of its order. It keeps no reference to record.
func (r *receiver) append(e *event.Event, record []byte) (t appended) {
	if t.spool = r.spool.Load(); t.spool == nil {
		return r.appendEarly(e, record)
	}
	t.ticket, t.repeats, t.err = r.last.append(t.spool, e, record)
	return t
}

// wait returns the answer to the postback of an appended event once that is on disk, with its sequence in the spool.
func (r *receiver) wait(e *event.Event, t appended) (a answer, sequence uint64) {
	if t.spool == nil {
		return answer{status: http.StatusServiceUnavailable, fate: failed, detail: "not ready"}, 0
	}
	err := t.err
	if err == nil {
		sequence, err = t.spool.Wait(t.ticket)
	}
	if !t.repeats {
		r.logFailing(err)
	}
	switch {
	case err != nil:
		return answer{status: http.StatusServiceUnavailable, fate: failed, detail: "cannot be stored now; retry"}, 0
	case t.repeats:
		return answer{status: http.StatusOK, fate: repeated, id: e.ID}, sequence
	case e.Other != "":
		return answer{status: http.StatusOK, fate: other, id: e.ID}, sequence
	default:
		return answer{status: http.StatusOK, fate: accepted, id: e.ID}, sequence
	}
}

// open appends the events that waited for the spool, in the order of their arrival since they may be of one order, and
// makes later ones use the spool directly.
func (r *receiver) open(s *spool.Spool) {
	r.opening.Lock()
	defer r.opening.Unlock()
	for _, appendTo := range r.waiting {
		(*appendTo)(s)
	}
	r.waiting = nil
	r.spool.Store(s)
	close(r.opened)
}

// appendEarly waits until open has appended the event, for openWait at most. Only verified postbacks wait, and each
// holds its connection and its share of the body budget meanwhile.
func (r *receiver) appendEarly(e *event.Event, record []byte) (t appended) {
	appendTo := func(s *spool.Spool) { t.ticket, t.repeats, t.err = r.last.append(s, e, record) }
	r.opening.Lock()
	if t.spool = r.spool.Load(); t.spool != nil { // by now
		r.opening.Unlock()
		appendTo(t.spool)
		return t
	}
	r.waiting = append(r.waiting, &appendTo)
	r.opening.Unlock()
	select {
	case <-r.opened:
	case <-time.After(openWait):
	}
	r.opening.Lock()
	defer r.opening.Unlock()
	r.waiting = slices.DeleteFunc(r.waiting, func(other *func(*spool.Spool)) bool { return other == &appendTo })
	t.spool = r.spool.Load()
	return t
}

// logFailing logs when verified postbacks begin and cease to be answered 503.
func (r *receiver) logFailing(err error) {
	switch {
	case err == nil && r.failing.Load() && r.failing.Swap(false):
		r.log.Info("the spool accepts postbacks again")
	case err != nil && !r.failing.Swap(true):
		r.log.Error("postbacks are answered 503", "error", err)
	}
}

// appendRecord appends the spool record of an event to b. Without a trace context of a tracer it makes one.
func appendRecord(b []byte, e *event.Event, arrival time.Time, traceParent string) []byte {
	if traceParent == "" {
		traceParent = NewTraceParent()
	}
	d := Delivery{
		ID: e.ID, Broker: e.Broker, UserID: e.UserID, OrderID: e.OrderID, Status: e.Status,
		ReceivedAt:  arrival,
		TraceParent: traceParent,
		Deadletter:  !e.Understood(),
	}
	if e.Other != "" {
		d.Type = event.TypeOther
	}
	return e.Append(d.appendHead(b))
}

// NewTraceParent returns a new trace context that is not sampled. A trace context in the request is ignored: every
// client can write it.
func NewTraceParent() string {
	var id [24]byte
	for i := 0; i < len(id); i += 8 {
		binary.BigEndian.PutUint64(id[i:], rand.Uint64()|1) // neither id may be all zeros
	}
	text := [55]byte{'0', '0', '-', 35: '-', 52: '-', 53: '0', 54: '0'}
	hex.Encode(text[3:], id[:16])
	hex.Encode(text[36:], id[16:])
	return string(text[:])
}

// writeAnswer writes the status and a short JSON body, whose length net/http adds.
func writeAnswer(w http.ResponseWriter, a answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	var body string
	switch {
	case a.status != http.StatusOK:
		body = `{"status":"error","error":` + strconv.Quote(a.detail) + "}\n"
	case a.id == "":
		body = `{"status":"ok"}` + "\n"
	default:
		body = `{"status":"ok","id":"` + a.id + `"}` + "\n"
	}
	switch a.status {
	case http.StatusServiceUnavailable:
		// Jittered, so that clients refused together do not retry together.
		h.Set("Retry-After", strconv.Itoa(1+rand.IntN(5)))
	case http.StatusTooManyRequests:
		h.Set("Retry-After", strconv.Itoa(int(refusalsForgotten.Seconds())))
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, body) // the client has disconnected
}
