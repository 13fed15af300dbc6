package bridge

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// status is the document of /status. The comments of its members are the table in cmd/postbridge/README.md.
type status struct {
	Version   string                    `json:"version"`             // Version of the build.
	Host      string                    `json:"host"`                // Host name, on Kubernetes the pod.
	Ready     bool                      `json:"ready"`               // Whether postbacks are accepted.
	NotReady  string                    `json:"not_ready,omitempty"` // Why they are not; absent if they are.
	Since     time.Time                 `json:"since"`               // When `ready` last changed, or the start.
	Postbacks map[string]postbackStatus `json:"postbacks"`           // Postbacks by broker, since start.
	Spool     spoolStatus               `json:"spool"`               // The spool. Sizes are in bytes.
	Buses     map[string]busStatus      `json:"buses"`               // The buses, by name.
}

type postbackStatus struct {
	Received uint64 `json:"received"` // Requests to the broker's routes, those in flight included.
	Accepted uint64 `json:"accepted"` // Answered 200: the event is in the spool.
	Repeated uint64 `json:"repeated"` // Answered 200: a repeat of the order's last event, not published again.
	Other    uint64 `json:"other"`    // Answered 200: no order update; published as a dead letter.
	Refused  uint64 `json:"refused"`  // Rejected by verification, or unreadable.
	Failed   uint64 `json:"failed"`   // Verified, but not stored: answered 503.
}

type spoolStatus struct {
	ID           string `json:"id,omitempty"`  // Spool id, `ce-spool` on the bus; absent until the spool is open.
	Last         uint64 `json:"last"`          // Sequence of the last event.
	Bytes        int64  `json:"bytes"`         // Used in the files, published events included; not what is preallocated.
	LimitBytes   int64  `json:"limit_bytes"`   // `POSTBRIDGE_SPOOL_MAX_BYTES`.
	WaitingBytes int64  `json:"waiting_bytes"` // Size of the events that some bus does not have.
	FreeBytes    int64  `json:"free_bytes"`    // Free space on the disk, the reserve and what is preallocated included.
	ReserveBytes int64  `json:"reserve_bytes"` // `POSTBRIDGE_SPOOL_MIN_FREE_BYTES`.
	// Seconds until unpublished events fill the spool or the disk, as fast as they grew in the last minute. Absent
	// unless they grow.
	FullInSeconds float64 `json:"full_in_seconds,omitempty"`
}

type busStatus struct {
	Up        bool      `json:"up"`        // Whether nothing blocks publishing.
	Since     time.Time `json:"since"`     // When `up` last changed, or the start.
	Committed uint64    `json:"committed"` // Sequence up to which every event is done.
	Waiting   uint64    `json:"waiting"`   // Events after it in the spool.
	busFates
	Rewound              uint64            `json:"rewound"`                // Rewinds since start: the bus lost events.
	OldestWaitingSeconds float64           `json:"oldest_waiting_seconds"` // Age of the oldest event that waits.
	Causes               []string          `json:"causes,omitempty"`       // Conditions that block publishing now.
	Conditions           []conditionStatus `json:"conditions,omitempty"`   // The same, with times.
	LastError            string            `json:"last_error,omitempty"`   // Last error since start; over if `up`.
	LastErrorAt          time.Time         `json:"last_error_at,omitzero"` // When it was last reported.

	again  uint64    // events that were stored and lost, so that Stored does not count them
	oldest time.Time // arrival of the oldest event in flight; zero if there is none
}

type conditionStatus struct {
	Name  string    `json:"name"`  // Name of the condition.
	Since time.Time `json:"since"` // When it began.
	Error string    `json:"error"` // Its latest error.
}

// shownTime returns a time as /status shows it.
func shownTime(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// readiness holds whether postbacks are accepted, and since when.
type readiness struct {
	mu    sync.Mutex
	ready bool
	since time.Time
}

// set returns when the state last changed. Readiness follows from the states of the spool and of the stop, so a change
// is noticed when the state is next read, a second later at most: see keepHistory.
func (r *readiness) set(ready bool) (since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ready != ready {
		r.ready, r.since = ready, time.Now()
	}
	return r.since
}

// status returns the state of the bridge now. Its counts may be of slightly different moments.
func (b *Bridge) status() status {
	st := status{
		Version: b.o.Version, Host: b.o.Host,
		Postbacks: make(map[string]postbackStatus),
		Spool:     spoolStatus{LimitBytes: b.o.SpoolMaxBytes, ReserveBytes: b.o.SpoolMinFree},
		Buses:     make(map[string]busStatus),
	}
	for name, m := range b.metrics.brokers {
		// A postback in flight is received and has no fate yet, so received is read last.
		var p postbackStatus
		p.Accepted, p.Repeated = m.fates[accepted].Load(), m.fates[repeated].Load()
		p.Other = m.fates[other].Load()
		p.Refused, p.Failed = m.fates[refused].Load(), m.fates[failed].Load()
		p.Received = m.received.Load()
		st.Postbacks[name] = p
	}
	reason := b.notReady()
	st.Ready, st.NotReady = reason == "", reason
	st.Since = shownTime(b.readiness.set(st.Ready))
	o := b.opened.Load()
	if o == nil {
		return st
	}
	for _, p := range o.pumps {
		st.Buses[p.bus] = p.status()
	}
	stats := o.spool.Stats() // after the pumps, so that none is ahead of the spool
	oldest := 0.0
	for _, p := range o.pumps {
		bus := st.Buses[p.bus]
		if bus.Waiting = stats.Last - bus.Committed; bus.Waiting > 0 {
			// WaitingSince is read after the last sequence, so that it is not that of an earlier event. An event that
			// was not read yet has no known arrival, and the clock may have been set back since.
			age := time.Since(p.cursor.WaitingSince())
			if !bus.oldest.IsZero() {
				age = max(age, time.Since(bus.oldest))
			}
			bus.OldestWaitingSeconds = age.Seconds()
			oldest = max(oldest, bus.OldestWaitingSeconds)
		}
		st.Buses[p.bus] = bus
	}
	st.Spool.ID, st.Spool.Last, st.Spool.FreeBytes = o.spool.ID(), stats.Last, stats.Free
	st.Spool.Bytes, st.Spool.WaitingBytes = stats.Bytes, stats.WaitingBytes
	if oldest >= leastGrowth.Seconds() { // events in flight to a bus that keeps up are no backlog
		st.Spool.FullInSeconds = b.history.secondsToFill(time.Since(b.started), stats.WaitingBytes, st.Spool.left())
	}
	return st
}

// left returns how many more bytes of unpublished events fit: published ones make way for them.
func (s *spoolStatus) left() int64 {
	return min(s.LimitBytes-s.WaitingBytes, s.FreeBytes+s.Bytes-s.WaitingBytes-s.ReserveBytes)
}

// notReady returns why postbacks are not accepted now, "" if they are. A bus that is down is no reason.
func (b *Bridge) notReady() string {
	o := b.opened.Load()
	switch {
	case b.receiver.leaving.Load():
		return "shutting down"
	case o == nil:
		return "waiting for the spool"
	case o.spool.Err() != nil:
		return o.spool.Err().Error()
	}
	if full := o.spool.Stats().Full; full != nil {
		return full.Error()
	}
	return ""
}

// admin serves /livez, /readyz, /metrics, /status and the page. With an admin token, only the probes and the files of
// the page, which ask for it, are open.
func (b *Bridge) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if reason := b.notReady(); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false) // it is for people: orders.>, not orders.\u003e
		enc.SetIndent("", "  ")
		_ = enc.Encode(b.status()) // the client has disconnected
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(b.o.Registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	if b.o.AdminPage {
		b.page(mux)
	}
	return b.behindToken(mux)
}

// openToAll reports whether a path of the admin listener needs no token: the kubelet has none, and the page asks for
// it. The path is compared as it was sent, so another spelling needs the token.
func openToAll(path string) bool {
	_, isPage := pageFile(path)
	return path == "/livez" || path == "/readyz" || isPage
}

// behindToken requires the token, except for paths that are open to all.
func (b *Bridge) behindToken(h http.Handler) http.Handler {
	return RequireToken(b.o.AdminToken, b.o.Reload, openToAll, h)
}

// RequireToken answers 401 to requests without the bearer token, except for paths that are open. Before it refuses one,
// it has the token file read again; reload reports whether a secret has changed. Without a token all requests pass.
func RequireToken(token func() string, reload func() bool, open func(path string) bool, h http.Handler) http.Handler {
	if token == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if open(req.URL.Path) || hasToken(req, token, reload) {
			h.ServeHTTP(w, req)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="postbridge"`)
		http.Error(w, "the bearer token is missing or wrong", http.StatusUnauthorized)
	})
}

// hasToken reports whether a request has the token.
func hasToken(req *http.Request, token func() string, reload func() bool) bool {
	scheme, given, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	given = strings.TrimLeft(given, " ")
	return given != "" && (sameText(given, token()) || reload != nil && reload() && sameText(given, token()))
}

// sameText compares in a time that reveals neither the text nor its length.
func sameText(given, want string) bool {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}
