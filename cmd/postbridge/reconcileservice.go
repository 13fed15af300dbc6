package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/book"
)

// serve reads the order books at intervals until ctx ends.
func (r *reconciler) serve(ctx context.Context, registry *prometheus.Registry) error {
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), readBuild().collector())
	r.credentials.files.start(ctx, r.log, registry)
	s := &reconcileService{
		reconciler: r, metrics: newReconcileMetrics(registry), slots: make(map[string]chan struct{}),
		states: make(map[string]*accountState), apps: make(map[string]*appState),
	}
	for _, name := range brokers.Names() {
		s.slots[name] = make(chan struct{}, parallel)
	}
	listener, err := net.Listen("tcp", r.admin)
	if err != nil {
		return fmt.Errorf("reconcile: cannot listen; set --admin to another address: %w", err)
	}
	server := &http.Server{Handler: s.handler(registry), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }() // until it is closed
	defer server.Close()
	r.log.Info("postbridge reconciles", "version", readBuild().String(), "every", r.every.String(),
		"admin", listener.Addr().String())
	s.watch(ctx)
	r.log.Info("stopped")
	return nil
}

// reconcileService runs the passes of all accounts, each at its own time.
type reconcileService struct {
	*reconciler
	metrics *reconcileMetrics
	slots   map[string]chan struct{} // by broker: one that hangs delays no other

	mu sync.Mutex
	// Guarded by mu, and so is what they hold.
	states map[string]*accountState // by the id of the account
	apps   map[string]*appState     // by broker and app
}

// accountState is what the service knows about one account.
type accountState struct {
	account *account
	pass    *book.Pass // of the current token
	due     time.Time  // when to read the book next; never while refused
	running bool
	refused bool // the broker refuses the token
	tried   bool

	result     string                      // of the last run, as in the metrics
	kept       string                      // the error whose response was kept last
	keptAt     time.Time                   // when that was
	outage     *backoff.ExponentialBackOff // nil without an outage
	retryAfter time.Duration               // until the next attempt after an outage; else 0
}

// appState is what the service knows about an app at a broker: brokers count the requests of all its accounts.
type appState struct {
	until   time.Time                   // no request before
	limited *backoff.ExponentialBackOff // nil if not rate limited
	limits  int                         // how often the broker limited the rate on day
	day     time.Time
}

// requestsPerApp limits the requests of an app that begin in one second. Fyers allows 200 in a minute.
const requestsPerApp = 3

// watch starts each pass when it is due, at most one per account and second, until ctx ends and all have ended.
func (s *reconcileService) watch(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		for _, a := range s.due(time.Now()) {
			running.Go(func() { s.visit(ctx, a) })
		}
		if !pause(ctx, time.Second) {
			return
		}
	}
}

// due compares the states with the current accounts and returns those whose book is to be read now.
func (s *reconcileService) due(now time.Time) (all []*accountState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	current, begun := make(map[string]bool), make(map[*appState]int)
	for _, a := range s.current() {
		current[a.id()] = true
		state := s.states[a.id()]
		if state == nil {
			state = &accountState{account: a}
			s.states[a.id()] = state
			s.metrics.add(a)
		}
		if state.pass == nil || !state.running && state.pass.Account.Credential != a.Credential {
			state.account, state.pass, state.due, state.refused = a, s.pass(a), now, false
			s.metrics.tokenChanged(a, now)
		}
		app := s.app(a)
		if !state.running && !state.refused && !state.due.After(now) && !app.until.After(now) &&
			begun[app] < requestsPerApp {
			begun[app]++
			state.running = true
			all = append(all, state)
		}
	}
	for name, state := range s.states {
		if !current[name] && !state.running {
			delete(s.states, name)
			s.metrics.remove(state.account)
		}
	}
	return all
}

// app returns the state of the account's app.
func (s *reconcileService) app(a *account) *appState {
	name := a.name + "/" + a.UserID
	if app, _, ok := strings.Cut(a.Credential, ":"); ok {
		name = a.name + "/" + app
	}
	if s.apps[name] == nil {
		s.apps[name] = new(appState)
	}
	return s.apps[name]
}

// visit runs the pass of an account, and plans the next one.
func (s *reconcileService) visit(ctx context.Context, state *accountState) {
	slots := s.slots[state.account.name]
	slots <- struct{}{}
	counts, err := s.run(ctx, state.pass)
	if unexpected, ok := errors.AsType[*book.Unexpected](err); ok {
		s.keep(ctx, state, unexpected)
	}
	<-slots
	s.mu.Lock()
	defer s.mu.Unlock()
	state.running = false
	if ctx.Err() != nil {
		return
	}
	state.tried = true
	s.metrics.count(state.account, counts, err, time.Now())
	s.report(state, counts, err)
	state.plan(err)
	s.app(state.account).plan(time.Now(), err, state.account.orders.MaxRateLimits)
	state.due = nextRun(time.Now(), s.every, s.marketHours, state.retryAfter)
}

// keepInterval is the time between two responses of one account that are kept for the same reason.
const keepInterval = time.Hour

// keep stores a response that is not understood as a dead letter, unless one was stored a while ago. Only the pass that
// runs uses what it changes.
func (s *reconcileService) keep(ctx context.Context, state *accountState, unexpected *book.Unexpected) {
	if state.kept == unexpected.Error() && time.Since(state.keptAt) < keepInterval {
		return
	}
	if err := s.keepResponse(ctx, state.pass, unexpected); err != nil {
		s.log.Warn("cannot keep the response as a dead letter", "broker", state.account.name, "error", err)
		return
	}
	state.kept, state.keptAt = unexpected.Error(), time.Now()
}

// report logs published events, and each change of the result.
func (s *reconcileService) report(state *accountState, counts book.Counts, err error) {
	log := state.pass.Log
	result := resultOf(err)
	changed := result != cmp.Or(state.result, "ok")
	state.result = result
	switch {
	case errors.Is(err, book.ErrToken):
		log.Error("the broker refuses the access token; the account is not read until the token changes",
			"remedy", "log in, and put the new token into "+envPrefix+state.account.setting()+"_FILE")
	case err != nil && changed:
		log.Warn("the order book cannot be reconciled", "error", err)
	case err == nil && changed:
		log.Info("the order book can be reconciled again")
	}
	if counts.Published > 0 {
		log.Info("published states that were missing on the bus", "events", counts.Published,
			"contradictions", counts.Contradictions, "rows", counts.Rows)
	}
}

// plan records the outcome of a run, and how long to wait after an outage.
func (s *accountState) plan(err error) {
	s.refused = errors.Is(err, book.ErrToken)
	s.retryAfter = 0
	if !errors.Is(err, book.ErrOutage) && !errors.Is(err, book.ErrBus) {
		s.outage = nil
		return
	}
	if s.outage == nil {
		s.outage = doublingBackoff(time.Second, 5*time.Minute)
	}
	s.retryAfter = s.outage.NextBackOff()
}

// plan waits after a rate limit: a minute, and twice as long each time; or until the next day if the broker would block
// the app.
func (a *appState) plan(now time.Time, err error, mostLimits int) {
	if !errors.Is(err, book.ErrRateLimited) {
		if err == nil {
			a.limited = nil
		}
		return
	}
	if day := book.Midnight(now); !day.Equal(a.day) {
		a.limits, a.day = 0, day
	}
	if a.limits++; mostLimits > 0 && a.limits >= mostLimits {
		a.until = a.day.AddDate(0, 0, 1)
		return
	}
	if a.limited == nil {
		a.limited = doublingBackoff(time.Minute, 15*time.Minute)
	}
	a.until = now.Add(a.limited.NextBackOff())
}

// doublingBackoff returns a backoff without jitter that never gives up: accounts are not due at the same time anyway.
func doublingBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(first), backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(0), backoff.WithMaxInterval(most), backoff.WithMaxElapsedTime(0))
}

// Times of the day in India. Orders change from the first pre-open orders to the end of the commodity exchange.
const (
	marketOpens  = 8*time.Hour + 45*time.Minute
	marketCloses = 23*time.Hour + 55*time.Minute
	// nseComplete and mcxComplete are when the orders of these exchanges have their last state.
	nseComplete = 15*time.Hour + 35*time.Minute
	mcxComplete = 23*time.Hour + 35*time.Minute
)

// nextRun returns when to read a book next: after the interval or, after an outage, after retry. In market hours the
// interval is moved to when they begin, and the times when a book is complete are not missed; a retry is not moved: a
// run that was due has failed.
func nextRun(now time.Time, every time.Duration, marketHours bool, retry time.Duration) time.Time {
	switch {
	case retry > 0:
		return now.Add(retry)
	case !marketHours:
		return now.Add(every)
	}
	next := now.Add(every)
	today := book.Midnight(now)
	for _, complete := range []time.Duration{nseComplete, mcxComplete} {
		if t := today.Add(complete); isWeekday(t) && t.After(now) && t.Before(next) {
			next = t
		}
	}
	day := book.Midnight(next)
	if next.After(day.Add(marketCloses)) {
		day = day.AddDate(0, 0, 1)
	}
	for !isWeekday(day) {
		day = day.AddDate(0, 0, 1)
	}
	if opens := day.Add(marketOpens); next.Before(opens) {
		return opens
	}
	return next
}

func isWeekday(t time.Time) bool {
	day := book.Midnight(t).Weekday()
	return day != time.Saturday && day != time.Sunday
}

// handler serves /livez, /readyz and /metrics.
func (s *reconcileService) handler(registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if reason := s.notReady(); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	var token func() string
	if s.config.AdminToken != "" || s.config.AdminTokenFile != "" {
		token = func() string { return load(&s.credentials.adminToken) }
	}
	open := func(path string) bool { return path == "/livez" || path == "/readyz" }
	return bridge.RequireToken(token, s.credentials.files.reload, open, mux)
}

// notReady returns why not every account has been tried; "" if each has.
func (s *reconcileService) notReady() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.buses.open.Load() {
		return "waiting for the bus"
	}
	for _, state := range s.states {
		if !state.tried {
			return "an order book has not been read yet"
		}
	}
	return ""
}
