package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/brokers/book"
)

// TestNextRun checks the times of market hours. 2026-01-09 is a Friday.
func TestNextRun(t *testing.T) {
	const layout = "2006-01-02 15:04:05"
	zone := book.Midnight(time.Now()).Location()
	for _, c := range []struct {
		now         string
		every       time.Duration
		always      bool
		retry       time.Duration
		want, about string
	}{
		{"2026-01-09 10:00:00", time.Minute, false, 0, "2026-01-09 10:01:00", "in market hours"},
		{"2026-01-09 07:00:00", time.Minute, false, 0, "2026-01-09 08:45:00", "before they begin"},
		{"2026-01-09 08:44:30", time.Minute, false, 0, "2026-01-09 08:45:30", "just before they begin"},
		{"2026-01-08 23:54:30", time.Minute, false, 0, "2026-01-09 08:45:00", "after the last one of the day"},
		{"2026-01-09 23:58:00", time.Minute, false, 0, "2026-01-12 08:45:00", "after the last one of the week"},
		{"2026-01-10 12:00:00", time.Minute, false, 0, "2026-01-12 08:45:00", "at the weekend"},
		{"2026-01-09 15:00:00", time.Hour, false, 0, "2026-01-09 15:35:00", "the book of NSE is complete"},
		{"2026-01-09 15:35:00", time.Hour, false, 0, "2026-01-09 16:35:00", "after it was read"},
		{"2026-01-09 23:00:00", time.Hour, false, 0, "2026-01-09 23:35:00", "the book of MCX is complete"},
		{"2026-01-10 15:00:00", time.Hour, false, 0, "2026-01-12 08:45:00", "no book at the weekend"},
		{"2026-01-09 07:00:00", 12 * time.Hour, false, 0, "2026-01-09 15:35:00", "a long interval over both"},
		{"2026-01-10 12:00:00", time.Minute, true, 0, "2026-01-10 12:01:00", "at all hours"},
		{"2026-01-09 10:00:00", time.Hour, false, time.Second, "2026-01-09 10:00:01", "after an outage"},
		{"2026-01-10 12:00:00", time.Hour, false, time.Second, "2026-01-10 12:00:01", "the run at the start failed"},
	} {
		now, err := time.ParseInLocation(layout, c.now, zone)
		if err != nil {
			t.Fatal(err)
		}
		if got := nextRun(now, c.every, !c.always, c.retry).In(zone).Format(layout); got != c.want {
			t.Errorf("%s: after %s comes %s, want %s", c.about, c.now, got, c.want)
		}
	}
}

// TestRateLimits waits longer each time, and until the next day before the broker would block the app.
func TestRateLimits(t *testing.T) {
	now := time.Date(2026, 1, 9, 6, 30, 0, 0, time.UTC) // 12:00 in India
	limited := fmt.Errorf("a pass: %w", book.ErrRateLimited)
	kite := new(appState)
	for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute,
		15 * time.Minute, 15 * time.Minute} {
		if kite.plan(now, limited, 0); kite.until.Sub(now) != want {
			t.Errorf("wait %v, want %v", kite.until.Sub(now), want)
		}
	}
	kite.plan(now, nil, 0)
	if kite.plan(now, limited, 0); kite.until.Sub(now) != time.Minute {
		t.Errorf("wait %v after a success and a limit, want a minute", kite.until.Sub(now))
	}

	fyers := new(appState)
	for range 2 {
		fyers.plan(now, limited, 3)
		fyers.plan(now, nil, 3) // limits of the day count together
	}
	if fyers.plan(now, limited, 3); fyers.until.Sub(now) != 12*time.Hour {
		t.Errorf("wait %v after the third limit of the day, want until midnight", fyers.until.Sub(now))
	}
	now = now.AddDate(0, 0, 1)
	if fyers.plan(now, limited, 3); fyers.until.Sub(now) != time.Minute {
		t.Errorf("wait %v on the next day, want a minute", fyers.until.Sub(now))
	}
}

// TestOutages waits longer after each outage of the broker or the bus.
func TestOutages(t *testing.T) {
	s := new(accountState)
	want := time.Second
	for _, err := range []error{book.ErrOutage, book.ErrBus, book.ErrOutage} {
		if s.plan(err); s.retryAfter != want {
			t.Errorf("wait %v after %v, want %v", s.retryAfter, err, want)
		}
		want *= 2
	}
	if s.plan(book.ErrNotUnderstood); s.retryAfter != 0 || s.refused {
		t.Errorf("wait %v, refused %v", s.retryAfter, s.refused)
	}
}

// TestAccountsChange follows the tokens in a file.
func TestAccountsChange(t *testing.T) {
	credentials := new(credentials)
	set := func(accounts ...book.Account) { credentials.kiteAccess.Store(&accounts) }
	s := &reconcileService{
		reconciler: &reconciler{
			reconcileOptions: new(reconcileOptions), config: new(config), credentials: credentials,
			log: slog.New(slog.DiscardHandler),
		},
		metrics: newReconcileMetrics(prometheus.NewRegistry()),
		states:  make(map[string]*accountState), apps: make(map[string]*appState),
	}
	now := time.Now()
	due := func(want ...string) {
		t.Helper()
		var got []string
		for _, state := range s.due(now) {
			got = append(got, state.pass.Account.UserID+":"+state.pass.Account.Credential)
			state.running, state.due = false, now.Add(time.Hour)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("due are %q, want %q", got, want)
		}
	}
	set(book.Account{UserID: "A", Credential: "1"})
	due("A:1")
	due()
	set(book.Account{UserID: "A", Credential: "1"}, book.Account{UserID: "B", Credential: "1"})
	due("B:1")
	s.states["kite/A"].plan(book.ErrToken)
	now = now.Add(2 * time.Hour)
	due("B:1")
	set(book.Account{UserID: "A", Credential: "2"}, book.Account{UserID: "B", Credential: "1"})
	due("A:2")
	set(book.Account{UserID: "B", Credential: "1"})
	due()

	// Brokers count the requests of all accounts of an app.
	var many []book.Account
	for _, user := range []string{"C", "D", "E", "F"} {
		many = append(many, book.Account{UserID: user, Credential: "app:1"})
	}
	set(append(many, book.Account{UserID: "G", Credential: "other:1"})...)
	due("C:app:1", "D:app:1", "E:app:1", "G:other:1")
	s.app(&account{Account: many[0], bookBroker: bookBroker{name: "kite"}}).plan(now, book.ErrRateLimited, 0)
	due()
	now = now.Add(time.Minute)
	due("F:app:1")
	set(book.Account{UserID: "B", Credential: "1"})
	due("B:1")
	if len(s.states) != 1 {
		t.Errorf("%d accounts, want one", len(s.states))
	}
}

// TestParseAccounts rejects what cannot be right, and shows no token.
func TestParseAccounts(t *testing.T) {
	books := new(config).books()
	for _, c := range []struct {
		broker     int
		text, want string // the error, or user:credential of each account
	}{
		{0, "AB1234=key:tok3n", "AB1234:key:tok3n"},
		{0, "AB1234=key:tok3n\nCD5678=key:tok3n2\n", "AB1234:key:tok3n CD5678:key:tok3n2"},
		{1, " 1000000003 = eyJ0.eyJ1.sig-_= ", "1000000003:eyJ0.eyJ1.sig-_="},
		{3, "FX00001=APP-100:tok3n", "FX00001:APP-100:tok3n"},
		{0, "AB1234=tok3n", "entry 1 has no app"},
		{3, "FX00001=:tok3n", "entry 1 has no app"},
		{1, "tok3n", "entry 1 has no user or no token; write it like client_id=access_token"},
		{2, "=tok3n", "entry 1 has no user"},
		{2, "UP0001=", "entry 1 has no user or no token"},
		{2, "UP0001=tok 3n", "entry 1 has a space"},
		{2, "UP0001=tok3n,UP0001=tok3n", "entry 2 has the user of an entry before it"},
		{2, `"UP0001=tok3n"`, "entry 1 is in quotes"},
		{2, "", "it is empty"},
	} {
		accounts, err := books[c.broker].parse(c.text)
		var got []string
		for _, a := range accounts {
			got = append(got, a.UserID+":"+a.Credential)
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if text != c.want && (err == nil || !strings.HasPrefix(text, c.want) || strings.Contains(text, "tok3n")) {
			t.Errorf("%q: %q, want %q", c.text, text, c.want)
		}
	}
}

// TestResultOf names every error of a pass.
func TestResultOf(t *testing.T) {
	for err, want := range map[error]string{
		nil: "ok", book.ErrToken: "token", book.ErrRateLimited: "rate_limited", book.ErrOutage: "outage",
		book.ErrNotUnderstood: "not_understood", book.ErrBus: "bus",
	} {
		if err != nil {
			err = errors.Join(errors.New("a pass"), err)
		}
		if got := resultOf(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
