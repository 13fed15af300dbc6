package nats

import "testing"

func TestOutdated(t *testing.T) {
	for version, want := range map[string]bool{
		"2.9.25": true, "2.10.29": true, "2.12.4": true,
		"2.14.0": false, "2.14.0-RC.1": false, "2.15.2": false, "3.0.1": false, "": false, "dev": false,
	} {
		if got := outdated(version); got != want {
			t.Errorf("%q: %t", version, got)
		}
	}
}

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
