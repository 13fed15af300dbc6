package main

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/book"
)

// reconcileMetrics are the metrics of a service.
type reconcileMetrics struct {
	runs, rows, contradictions *prometheus.CounterVec
	success, refused, token    *prometheus.GaugeVec
}

func newReconcileMetrics(registry prometheus.Registerer) *reconcileMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postbridge_reconcile_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postbridge_reconcile_" + name, Help: help},
			[]string{"broker", "account"})
	}
	m := &reconcileMetrics{
		runs: counter("runs_total", "Comparisons of an order book with the bus, by result: ok, token, rate_limited, "+
			"outage, not_understood or bus.", "broker", "result"),
		rows: counter("rows_total", "Rows of order books by outcome: equal, early, old, skipped, published, failed or "+
			"unreadable.", "broker", "outcome"),
		contradictions: counter("contradictions_total",
			"Published rows that contradict an event on the bus that is not older.", "broker"),
		success: gauge("last_success_timestamp_seconds", "When the order book of the account was last reconciled; 0 "+
			"before the first time."),
		refused: gauge("token_refused", "1 while the broker refuses the access token of the account."),
		token:   gauge("token_timestamp_seconds", "When the access token of the account was first read."),
	}
	registry.MustRegister(m.runs, m.rows, m.contradictions, m.success, m.refused, m.token)
	return m
}

// add begins the series of an account, so that an alert sees the first increase.
func (m *reconcileMetrics) add(a *account) {
	for _, result := range []string{"ok", "token", "rate_limited", "outage", "not_understood", "bus"} {
		m.runs.WithLabelValues(a.name, result)
	}
	m.contradictions.WithLabelValues(a.name)
	m.success.WithLabelValues(a.name, a.UserID)
}

// tokenChanged records a new token.
func (m *reconcileMetrics) tokenChanged(a *account, now time.Time) {
	m.refused.WithLabelValues(a.name, a.UserID).Set(0)
	m.token.WithLabelValues(a.name, a.UserID).Set(float64(now.Unix()))
}

// remove ends the series of an account.
func (m *reconcileMetrics) remove(a *account) {
	for _, gauge := range []*prometheus.GaugeVec{m.success, m.refused, m.token} {
		gauge.DeleteLabelValues(a.name, a.UserID)
	}
}

// count counts a run.
func (m *reconcileMetrics) count(a *account, c book.Counts, err error, now time.Time) {
	for outcome, rows := range map[string]int64{
		"equal": c.Equal, "early": c.Early, "old": c.Old, "skipped": c.Skipped, "published": c.Published,
		"failed": c.Failed, "unreadable": c.Unreadable,
	} {
		m.rows.WithLabelValues(a.name, outcome).Add(float64(rows))
	}
	m.contradictions.WithLabelValues(a.name).Add(float64(c.Contradictions))
	m.runs.WithLabelValues(a.name, resultOf(err)).Inc()
	switch {
	case err == nil:
		m.success.WithLabelValues(a.name, a.UserID).Set(float64(now.Unix()))
	case errors.Is(err, book.ErrToken):
		m.refused.WithLabelValues(a.name, a.UserID).Set(1)
	}
}

// resultOf returns the result of a run for the metrics.
func resultOf(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, book.ErrToken):
		return "token"
	case errors.Is(err, book.ErrRateLimited):
		return "rate_limited"
	case errors.Is(err, book.ErrNotUnderstood):
		return "not_understood"
	case errors.Is(err, book.ErrBus), errors.Is(err, bridge.ErrRejected):
		return "bus"
	default:
		return "outage"
	}
}
