package nats

import (
	"strings"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
)

func TestClockGrade(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		told  time.Time
		grade bridge.Grade
		text  string
	}{
		{now.Add(time.Second), bridge.OK, "agrees"}, // somewhen between question and answer
		{now.Add(-500 * time.Millisecond), bridge.OK, "agrees"},
		{now.Add(-3 * time.Second), bridge.Warn, "is 3s away"},
		{now.Add(6 * time.Second), bridge.Warn, "is 4s away"},
	} {
		x := new(examiner)
		x.clock(now, now.Add(2*time.Second), c.told)
		if f := x.All[0]; f.Area != "clock" || f.Grade != c.grade || !strings.Contains(f.Text, c.text) {
			t.Errorf("%+v, want %v %q", f, c.grade, c.text)
		}
	}
	x := new(examiner)
	x.clock(now, now, time.Time{})
	if len(x.All) > 0 {
		t.Errorf("a server that tells no time: %+v", x.All)
	}
}

func TestVersionGrade(t *testing.T) {
	for version, grade := range map[string]bridge.Grade{"2.9.25": bridge.Warn, "1.4.1": bridge.Warn, "2.10.0": bridge.OK, "2.15.2-beta.1": bridge.OK, "3.0.0": bridge.OK} {
		x := new(examiner)
		x.version("server", version)
		if x.All[0].Grade != grade {
			t.Errorf("%+v", x.All)
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
