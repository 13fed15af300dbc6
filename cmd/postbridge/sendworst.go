package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// misbehaviour is something that brokers are known to do: how it changes the states of an order, and how they are sent.
type misbehaviour struct {
	name        string
	late        bool    // the last partial fill comes after the end of its order
	twice       []step  // these states come twice ...
	reworded    bool    // ... the second time in other words
	rate        float64 // the postbacks of a second come all at its beginning; this many unless --rate is set
	connections int     // at least this many; the states of half of the orders come over several at once
}

// allMisbehaviours returns every misbehaviour in the order in which they change an order.
func allMisbehaviours() misbehaviours {
	return misbehaviours{
		{name: "late", late: true},
		{name: "words", twice: []step{open, partlyFilled}, reworded: true},
		{name: "cancels", twice: []step{cancelled}, reworded: true},
		{name: "doubled", twice: []step{placed, open, partlyFilled, filled, cancelled, rejected}},
		{name: "storm", rate: 500},
		{name: "split", connections: 4},
	}
}

// misbehaviours are those that --worst names.
type misbehaviours []misbehaviour

// set reads names, or all.
func (m *misbehaviours) set(text string) error {
	all := allMisbehaviours()
	if text == "all" {
		text = all.String()
	}
	var names list
	if err := names.UnmarshalText([]byte(text)); err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains(strings.Split(all.String(), ","), name) {
			return fmt.Errorf("%q is not known; set it to all or some of %v", name, all)
		}
	}
	*m = slices.DeleteFunc(all, func(of misbehaviour) bool { return !slices.Contains(names, of.name) })
	return nil
}

func (m misbehaviours) String() string {
	var names list
	for _, of := range m {
		names = append(names, of.name)
	}
	return names.String()
}

// split reports whether the states of some orders are sent over several connections at once.
func (m misbehaviours) split() bool {
	return slices.ContainsFunc(m, func(of misbehaviour) bool { return of.connections > 0 })
}

// burst reports whether the postbacks of a second come all at its beginning.
func (m misbehaviours) burst() bool {
	return slices.ContainsFunc(m, func(of misbehaviour) bool { return of.rate > 0 })
}

// worstReport is what a consumer should see, and what is on each bus.
type worstReport struct {
	Behaviours string                `json:"behaviours"`
	Orders     int                   `json:"orders"`
	Events     int                   `json:"events"`
	Buses      map[string]*busReport `json:"buses"`

	atLeast bool // the order of some states is not known, and one that is left and reached again counts once
}

// busReport is how one bus compares.
type busReport struct {
	Unread    string `json:"unread,omitempty"` // why it could not be read; then nothing else holds
	Stored    int    `json:"stored"`
	Missing   int    `json:"missing"`
	Disorder  int    `json:"out_of_order"` // orders
	Republish int    `json:"repeats_published"`

	last time.Time // when the last event of these orders arrived
	note string    // the state of the connection
}

// compare takes in one order: what was acknowledged, and what is stored.
func (b *busReport) compare(want *ackedOrder, got []string) {
	b.Stored += len(got)
	there := make(map[string]bool, len(got))
	for _, id := range got {
		there[id] = true
	}
	missing := 0
	for _, id := range want.ids {
		if !there[id] {
			missing++
		}
	}
	b.Missing += missing
	if want.unordered {
		return
	}
	news := slices.Compact(slices.Clone(got))
	b.Republish += len(got) - len(news)
	if missing == 0 && !slices.Equal(news, want.ids) {
		b.Disorder++
	}
}

// failure says what is wrong: something is missing, or out of order. A repeat that is published is allowed.
func (r *worstReport) failure() error {
	var wrong []error
	for _, name := range busNames() {
		if b := r.Buses[name]; b != nil && b.Missing+b.Disorder > 0 {
			wrong = append(wrong, fmt.Errorf("%s lacks %d of %d events, and has %d of %d orders out of order",
				name, b.Missing, r.Events, b.Disorder, r.Orders))
		}
	}
	return errors.Join(wrong...)
}

func (r *worstReport) text() string {
	var b strings.Builder
	least := ""
	if r.atLeast {
		least = "at least "
	}
	fmt.Fprintf(&b, "%s: a consumer should see %s%d events of %d orders\n", r.Behaviours, least, r.Events, r.Orders)
	for _, name := range busNames() {
		of := r.Buses[name]
		switch {
		case of == nil:
		case of.Unread != "":
			fmt.Fprintf(&b, "  %s: not checked, since it cannot be read: %s\n", name, of.Unread)
		default:
			fmt.Fprintf(&b, "  %s: %d stored, %d missing, %d orders out of order, %d repeats published\n",
				name, of.Stored, of.Missing, of.Disorder, of.Republish)
		}
	}
	return b.String()
}
