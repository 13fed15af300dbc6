package brokertest

import (
	"slices"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
)

// FuzzNormalize fuzzes Normalize: every order that it returns must be complete, and its event must match the schema.
func FuzzNormalize(f *testing.F, s Suite) {
	schema := compileSchema(f)
	for _, b := range s.seeds(f) {
		f.Add(b.body)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		order, err := s.order(text)
		if err == nil &&
			(order.OrderID == "" || order.BrokerStatus == "" || !slices.Contains(event.Statuses(), order.Status)) {
			t.Errorf("an order without id or status: %+v", order)
		}
		e := s.unverified(text)
		if err := schema.validate(encode(t, e)); err != nil {
			t.Errorf("the event does not fit the schema: %v", err)
		}
		if members, ok := parseObject(text); ok && err == nil && e.Understood() && members.hasUniqueNames() {
			same := s.id(t, members.text())
			slices.Reverse(members)
			if s.id(t, members.text()) != same {
				t.Error("the id depends on the order of the members")
			}
		}
	})
}

// FuzzVerify fuzzes Verify. A postback that it accepts must also be accepted by proven, an independent implementation
// of the adapter's rule.
func FuzzVerify(f *testing.F, s Suite, proven func(*bridge.Postback) bool) {
	for _, b := range s.seeds(f) {
		f.Add(s.PathToken, "", b.body)
		f.Add("", s.PathToken, b.body)
	}
	f.Fuzz(func(t *testing.T, pathToken, queryToken string, text []byte) {
		p := &bridge.Postback{PathToken: pathToken, QueryToken: queryToken, Body: text}
		how, err := s.Broker.Verify(p)
		switch {
		case err != nil:
			checkRefusal(t, err)
		case how == "" || !proven(p):
			t.Errorf("accepted without proof, verified by %q", how)
		}
	})
}

// seeds returns all bodies of the suite, and each of them with each of its fields changed.
func (s Suite) seeds(f *testing.F) []sample {
	all := append(s.genuine(f), s.samples(f, "unproven")...)
	for _, b := range slices.Clone(all) {
		members, _ := parseObject(b.body)
		for i, m := range members {
			all = append(all, sample{b.name, members.with(i, m.changed())})
		}
	}
	return all
}
