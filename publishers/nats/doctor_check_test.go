package nats

import "testing"

func TestMayPublish(t *testing.T) {
	for _, c := range []struct {
		allow, deny []string
		want        bool
	}{
		{nil, nil, true},
		{[]string{"x", "orders.>"}, nil, true},
		{[]string{">"}, []string{"rejects.>"}, true},
		{[]string{"orders.kite.>"}, nil, false},
		{[]string{">"}, []string{"orders.>"}, false},
		{nil, []string{"orders.kite.AB1234.1"}, false},
	} {
		if got := (publishRights{c.allow, c.deny}).cover("orders.*.*.*"); got != c.want {
			t.Errorf("%q but %q: %t", c.allow, c.deny, got)
		}
	}
}
