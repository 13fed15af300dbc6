package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/book"
)

// serve reads the order books at intervals until ctx ends.
func (r *reconciler) serve(ctx context.Context, registry *prometheus.Registry) error {
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.credentials.files.start(ctx, r.log, registry)
	s := &reconcileService{
		reconciler: r, metrics: newReconcileMetrics(registry), slots: make(chan struct{}, parallel),
		states: make(map[string]*accountState),
	}
	listener, err := net.Listen("tcp", r.admin)
	if err != nil {
		return fmt.Errorf("reconcile: cannot listen; set --admin to another address: %w", err)
	}
	server := &http.Server{Handler: s.handler(registry), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }() // until it is closed
	defer server.Close()
	r.log.Info("postbridge reconciles", "version", buildVersion(), "every", r.every.String(),
		"admin", listener.Addr().String())
	s.watch(ctx)
	r.log.Info("stopped")
	return nil
}

// reconcileService runs the passes of all accounts, each at its own time.
type reconcileService struct {
	*reconciler
	metrics *reconcileMetrics
	slots   chan struct{}

	mu     sync.Mutex
	states map[string]*accountState // by the name of the account; guarded by mu, and so is what they hold
}

// accountState is what the service knows about one account.
type accountState struct {
	account *account
	pass    *book.Pass // of the current token
	due     time.Time  // when to read the book next; never while refused
	running bool
	refused bool // the broker refuses the token
	tried   bool

	problem    string                      // the last error in the log
	kept       string                      // the last response that was kept
	outage     *backoff.ExponentialBackOff // nil without an outage
	limited    *backoff.ExponentialBackOff // nil if not rate limited
	limits     int                         // how often the broker limited the rate on limitsDay
	limitsDay  time.Time
	retryAfter time.Duration // until the next attempt after an error; 0 after a success
}

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
	current := make(map[string]bool)
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
		if !state.running && !state.refused && !state.due.After(now) {
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

// visit runs the pass of an account, and plans the next one.
func (s *reconcileService) visit(ctx context.Context, state *accountState) {
	s.slots <- struct{}{}
	counts, err := s.run(ctx, state.pass)
	if unexpected, ok := errors.AsType[*book.Unexpected](err); ok {
		s.keep(ctx, state, unexpected)
	}
	<-s.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	state.running = false
	if ctx.Err() != nil {
		return
	}
	state.tried = true
	s.metrics.count(state.account, counts, err, time.Now())
	s.report(state, counts, err)
	state.plan(time.Now(), err)
	state.due = nextRun(time.Now(), s.every, s.marketHours, state.retryAfter)
}

// keep stores a response that is not understood as a dead letter, unless it is the one stored last.
func (s *reconcileService) keep(ctx context.Context, state *accountState, unexpected *book.Unexpected) {
	if state.kept == string(unexpected.Body) {
		return
	}
	err := s.buses.use(ctx, func([]book.Bus) error { return state.pass.Keep(ctx, unexpected) })
	if err != nil {
		s.log.Warn("cannot keep the response as a dead letter", "broker", state.account.name, "error", err)
		return
	}
	state.kept = string(unexpected.Body) // only the pass that runs uses it
}

// report logs published events, and each change of the error.
func (s *reconcileService) report(state *accountState, counts book.Counts, err error) {
	log := state.pass.Log
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	changed := problem != state.problem
	state.problem = problem
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

// plan records the outcome of a run, and how long to wait for the next one at least.
func (s *accountState) plan(now time.Time, err error) {
	s.retryAfter = 0
	if !errors.Is(err, book.ErrRateLimited) {
		s.limited = nil
	}
	if !errors.Is(err, book.ErrOutage) && !errors.Is(err, book.ErrBus) {
		s.outage = nil
	}
	switch {
	case errors.Is(err, book.ErrToken):
		s.refused = true
	case errors.Is(err, book.ErrRateLimited):
		s.retryAfter = s.afterRateLimit(now)
	case errors.Is(err, book.ErrOutage), errors.Is(err, book.ErrBus):
		if s.outage == nil {
			s.outage = bridge.RetryForever(time.Second)
		}
		s.retryAfter = s.outage.NextBackOff()
	}
}

// afterRateLimit returns how long to wait: a minute, and twice as long each time, or until the next day if the broker
// would block the account.
func (s *accountState) afterRateLimit(now time.Time) time.Duration {
	if day := book.Midnight(now); !day.Equal(s.limitsDay) {
		s.limits, s.limitsDay = 0, day
	}
	s.limits++
	if most := s.account.orders.MaxRateLimits; most > 0 && s.limits >= most {
		return s.limitsDay.AddDate(0, 0, 1).Sub(now)
	}
	if s.limited == nil {
		s.limited = backoff.NewExponentialBackOff(backoff.WithInitialInterval(time.Minute),
			backoff.WithMultiplier(2), backoff.WithRandomizationFactor(0), backoff.WithMaxInterval(15*time.Minute),
			backoff.WithMaxElapsedTime(0))
	}
	return s.limited.NextBackOff()
}

// Times of the day in India. Orders change from the first pre-open orders to the end of the commodity exchange.
const (
	marketOpens  = 8*time.Hour + 45*time.Minute
	marketCloses = 23*time.Hour + 55*time.Minute
	// nseComplete and mcxComplete are when the orders of these exchanges have their last state.
	nseComplete = 15*time.Hour + 35*time.Minute
	mcxComplete = 23*time.Hour + 35*time.Minute
)

// nextRun returns when to read a book next: after the interval or, after an error, after retry. In market hours that is
// moved to when they begin, and the times when a book is complete are not missed.
func nextRun(now time.Time, every time.Duration, marketHours bool, retry time.Duration) time.Time {
	if retry > 0 {
		every = retry
	}
	next := now.Add(every)
	if !marketHours {
		return next
	}
	today := book.Midnight(now)
	for _, complete := range []time.Duration{nseComplete, mcxComplete} {
		if t := today.Add(complete); retry == 0 && isWeekday(t) && t.After(now) && t.Before(next) {
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
	if !s.buses.isOpen() {
		return "waiting for the bus"
	}
	for _, state := range s.states {
		if !state.tried {
			return "an order book has not been read yet"
		}
	}
	return ""
}
