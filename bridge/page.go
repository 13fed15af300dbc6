package bridge

import (
	"embed"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// pageFiles are the static files of the page. They hold no data.
//
//go:embed page
var pageFiles embed.FS

// pageSecurity is the Content-Security-Policy of the page: the browser runs and loads nothing but these files, makes
// no HTML of text, and shows the page in no frame. The texts of events are untrusted. Icons are data
// URLs: that of a postbridge that does not answer cannot be requested from it.
const pageSecurity = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'; trusted-types 'none'"

// pageFile returns the file at a path of the page; not ok at any other path.
func pageFile(path string) (name string, ok bool) {
	switch path {
	case "/":
		return "page.html", true
	case "/page/page.css", "/page/page.js", "/page/icon.svg":
		return path[len("/page/"):], true
	default:
		return "", false
	}
}

// page serves the files of the page, which need no token, and the data that it requests once a second.
func (b *Bridge) page(mux *http.ServeMux) {
	mux.HandleFunc("GET /", func(w http.ResponseWriter, req *http.Request) {
		name, ok := pageFile(req.URL.Path)
		if !ok {
			http.NotFound(w, req)
			return
		}
		setPageHeaders(w.Header())
		http.ServeFileFS(w, req, pageFiles, "page/"+name)
	})
	mux.HandleFunc("GET /page/data", b.servePageData)
}

func setPageHeaders(h http.Header) {
	h.Set("Content-Security-Policy", pageSecurity)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// pageData is the data of the page. Counters start at 0 with each run; the page computes rates from them.
type pageData struct {
	Run     string                       `json:"run"`     // identifies this run of the process
	Seconds float64                      `json:"seconds"` // since its start
	Status  status                       `json:"status"`
	Answers answerTimes                  `json:"answers"`
	Refused map[string]map[string]uint64 `json:"refused"` // by broker and reason
	History historyAfter                 `json:"history"` // after the seconds in the request
	Events  []json.RawMessage            `json:"events"`  // after the index in the request
	Last    uint64                       `json:"last"`    // index of the last, for the next request
}

// servePageData answers with the events after the index in the parameter after, and the history after the seconds in
// the parameter since; without them, with all in memory.
func (b *Bridge) servePageData(w http.ResponseWriter, req *http.Request) {
	setPageHeaders(w.Header())
	after := uint64(0)
	if text := req.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseUint(text, 10, 64); err != nil {
			http.Error(w, "after is not a whole number", http.StatusBadRequest)
			return
		}
	}
	since := -1.0
	if text := req.URL.Query().Get("since"); text != "" {
		var err error
		if since, err = strconv.ParseFloat(text, 64); err != nil {
			http.Error(w, "since is not a number", http.StatusBadRequest)
			return
		}
	}
	d := pageData{
		Run:     strconv.FormatInt(b.started.UnixNano(), 36),
		Seconds: time.Since(b.started).Seconds(),
		Status:  b.status(),
		History: b.history.after(since),
	}
	d.Events, d.Last = b.receiver.recent.since(after)
	var err error
	if d.Answers, d.Refused, err = b.metrics.figures(); err != nil {
		http.Error(w, "the metrics cannot be read: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(d) // the client has disconnected
}
