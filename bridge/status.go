package bridge

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// status is the document of /status.
type status struct {
	Ready     bool                      `json:"ready"`
	NotReady  string                    `json:"not_ready,omitempty"` // why
	Postbacks map[string]postbackStatus `json:"postbacks"`           // by broker, since start
	Spool     spoolStatus               `json:"spool"`
	Buses     map[string]busStatus      `json:"buses"`
}

type postbackStatus struct {
	Received uint64 `json:"received"`
	Accepted uint64 `json:"accepted"`
	Repeated uint64 `json:"repeated"`
	Other    uint64 `json:"other"`
	Refused  uint64 `json:"refused"`
	Failed   uint64 `json:"failed"`
}

type spoolStatus struct {
	ID           string `json:"id,omitempty"` // empty until the spool is open
	Last         uint64 `json:"last"`
	Bytes        int64  `json:"bytes"`
	LimitBytes   int64  `json:"limit_bytes"`
	WaitingBytes int64  `json:"waiting_bytes"`
	FreeBytes    int64  `json:"free_bytes"`    // of the disk, including the reserve
	ReserveBytes int64  `json:"reserve_bytes"` // free space to keep
}

type busStatus struct {
	Up        bool   `json:"up"`
	Committed uint64 `json:"committed"`
	Waiting   uint64 `json:"waiting"`
	busFates
	Rewound              uint64   `json:"rewound"` // number of rewinds since start
	OldestWaitingSeconds float64  `json:"oldest_waiting_seconds"`
	Causes               []string `json:"causes,omitempty"`     // the conditions that block publishing now
	LastError            string   `json:"last_error,omitempty"` // since start; it may be over

	again  uint64    // events that were stored and lost, so that Stored does not count them
	oldest time.Time // arrival of the oldest event in flight; zero if there is none
}

// status returns the state of the bridge now. Its counts may be of slightly different moments.
func (b *Bridge) status() status {
	st := status{
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
	o := b.opened.Load()
	if o == nil {
		return st
	}
	for _, p := range o.pumps {
		st.Buses[p.bus] = p.status()
	}
	stats := o.spool.Stats() // after the pumps, so that none is ahead of the spool
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
		}
		st.Buses[p.bus] = bus
	}
	st.Spool.ID, st.Spool.Last, st.Spool.FreeBytes = o.spool.ID(), stats.Last, stats.Free
	st.Spool.Bytes, st.Spool.WaitingBytes = stats.Bytes, stats.WaitingBytes
	return st
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
