package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/brokers/kite"
)

func TestParseKiteSecrets(t *testing.T) {
	want := []kite.Secret{{AppID: "1234", Secret: "a=b"}, {AppID: "1234", Secret: "c"}, {AppID: "5", Secret: "d"}}
	for _, text := range []string{"1234=a=b,1234=c,5=d", "1234=a=b\n1234=c\r\n\n5=d\n", " 1234 = a=b , 1234=c\n5=d"} {
		if got, err := parseKiteSecrets(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestParseWord(t *testing.T) {
	if got, err := parseWord(" pass word \r\n"); err != nil || got != " pass word " {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := parseWord("\n"); err == nil {
		t.Error("an empty secret is taken")
	}
}

// TestWrongSecrets checks that secrets which cannot be right, as a setting and as a file, are misuse for every command
// that reads them, and are never printed.
func TestWrongSecrets(t *testing.T) {
	const app = "has an app id that is not a number; it is the app_id of postbacks, not the api_key"
	const line = "starts like a line of a shell script; keep only the value after the ="
	const secret = "has a space or a non-ASCII character in its secret; remove it"
	for name, tests := range map[string][]struct{ text, want string }{
		"KITE_SECRETS": {
			{`"1234=s3cret"`, "entry 1 is in quotes; remove them"},
			{`'1234=s3cret,5=s3cret'`, "it is in quotes; remove them"},
			{`5=a,1234="s3cret"`, "entry 2 has a secret that is in quotes; remove them"},
			{`1234="s3cret,5=s3cret"`, "entry 1 has a quotation mark in its secret; remove it"},
			{`5=a,1234=s3cret'`, "entry 2 has a quotation mark in its secret; remove it"},
			{"5=a\n1234=“s3cret”", "entry 2 " + secret},
			{"\ufeff1234=s3cret", "entry 1 starts with a byte order mark; save it without one"},
			{"5=a\r\n1234=s3cret\u200b\r\n", "entry 2 has an invisible character (U+200B); remove it"},
			{"1234=s3\u00adcret", "entry 1 has an invisible character (U+00AD); remove it"},
			{"1234=s3\u00a0cret", "entry 1 has an invisible character (U+00A0); remove it"},
			{"1234=s3\x1bcret", "entry 1 has an invisible character (U+001B); remove it"},
			{"1\u20602=s3cret", "entry 1 has an invisible character (U+2060); remove it"},
			{"\xff\xfe1=s3cret", "entry 1 is not UTF-8; save it as UTF-8"},
			{"1234=s3сret", "entry 1 " + secret}, // the c is Cyrillic
			{"1234=s3cret # of app one", "entry 1 " + secret},
			{"export KITE_SECRETS=1234=s3cret", "entry 1 " + line},
			{"POSTBRIDGE_KITE_SECRETS=1234=s3cret", "entry 1 " + line},
			{"abc1234=s3cret", "entry 1 " + app}, {"-1=s3cret", "entry 1 " + app},
			{"12.0=s3cret", "entry 1 " + app}, {"012=s3cret", "entry 1 " + app},
		},
		"DHAN_TOKENS": {
			{`"s3cret"`, "entry 1 is in quotes; remove them"}, {"a,`s3cret`", "entry 2 is in quotes; remove them"},
			{"'s3cret,s3cret'", "it is in quotes; remove them"},
			{"\ufeffs3cret", "entry 1 starts with a byte order mark; save it without one"},
			{"s3cret\u200b", "entry 1 has an invisible character (U+200B); remove it"},
			{"export s3cret", "entry 1 " + line}, {"POSTBRIDGE_DHAN_TOKENS=s3cret", "entry 1 " + line},
		},
		"ADMIN_TOKEN": {
			{`"s3cret"`, "it is in quotes; remove them"},
			{"\ufeffs3cret", "it starts with a byte order mark; save it without one"},
			{"s3cret\u200b", "it has an invisible character (U+200B); remove it"},
		},
		"NATS_TOKEN": {
			{"'s3cret'", "it is in quotes; remove them"},
			{"\ufeffs3cret\n", "it starts with a byte order mark; save it without one"},
			{"s3cret\n\ns3cret", "it has an invisible character (U+000A); remove it"},
			{"s3cret\tx", "it has an invisible character (U+0009); remove it"},
			{"export NATS_TOKEN=s3cret", "it " + line},
		},
		"NATS_PASSWORD": {{`"s3cret"`, "it is in quotes; remove them"},
			{"s3cr\xe9t", "it is not UTF-8; save it as UTF-8"}},
		"KAFKA_PASSWORD": {
			{"‘s3cret’", "it is in quotes; remove them"},
			{"s3cret\u200d", "it has an invisible character (U+200D); remove it"},
		},
	} {
		base := []string{envPrefix + "DHAN_TOKENS=t"}
		commands := []string{"config", "doctor", "serve"}
		switch bus, _, _ := strings.Cut(name, "_"); bus {
		case "DHAN":
			base = nil
		case "NATS":
			base = append(base, envPrefix+"NATS_URL=bus")
			commands = append(commands, "tail", "drain")
		case "KAFKA":
			base = append(base, environ("PUBLISH=kafka KAFKA_BROKERS=bus:9092 KAFKA_USER=u "+
				"KAFKA_SASL_MECHANISM=PLAIN")...)
			commands = append(commands, "tail", "drain")
		}
		if name == "NATS_PASSWORD" {
			base = append(base, envPrefix+"NATS_USER=u")
		}
		for _, test := range tests {
			path := write(t, "secret", test.text)
			for setting, value := range map[string]string{name: test.text, name + "_FILE": path} {
				for _, command := range commands {
					got := runWith(t, append(slices.Clone(base), envPrefix+setting+"="+value), command)
					want := result{exitMisuse, "", "postbridge: " + envPrefix + setting + ": " + test.want + "\n"}
					if got != want {
						t.Errorf("%s of %s=%q: %+v\nwant %+v", command, setting, value, got, want)
					}
				}
			}
		}
	}
	if _, err := parseWord(`it's "quoted"`); err != nil {
		t.Error(err)
	}
	got := runWith(t, environ(`DHAN_TOKENS=t DHAN_CLIENT_IDS=1100,"1101"`), "config")
	if got.stderr != "postbridge: POSTBRIDGE_DHAN_CLIENT_IDS: entry 2 is in quotes; remove them\n" {
		t.Errorf("%+v", got)
	}
}

// watched is a set of credentials with the Kite secrets and the Dhan tokens in files, and its log.
type watched struct {
	*credentials
	kitePath, dhanPath string
	log                *bytes.Buffer
}

func newWatched(t *testing.T, kitePath, dhanPath string) *watched {
	t.Helper()
	c := &config{KiteSecretsFile: kitePath, DhanTokensFile: dhanPath}
	s, err := readCredentials(c.brokerSecrets())
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{s, kitePath, dhanPath, new(bytes.Buffer)}
	s.files.log = slog.New(slog.NewTextHandler(w.log, nil))
	return w
}

// logged counts the log lines since the last call, and fails if they show the content of a file.
func (w *watched) logged(t *testing.T) int {
	t.Helper()
	w.files.mu.Lock() // held by who logs
	defer w.files.mu.Unlock()
	defer w.log.Reset()
	if text := w.log.String(); strings.Contains(text, "s3cret") {
		t.Errorf("the log shows a secret: %s", text)
	}
	return strings.Count(w.log.String(), "\n")
}

func (w *watched) wantSecret(t *testing.T, secret string) {
	t.Helper()
	if got := w.kite().Secrets; len(got) != 1 || got[0].Secret != secret {
		t.Errorf("in force is %v, want %s", got, secret)
	}
}

func (w *watched) wantOK(t *testing.T, ok float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(w.files.ok)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == "KITE_SECRETS_FILE" && m.GetGauge().GetValue() != ok {
			t.Errorf("the metric is %v, want %v", m.GetGauge().GetValue(), ok)
		}
	}
}

// TestWatch changes a file to valid and invalid states. The clock is fake, the files are real.
func TestWatch(t *testing.T) {
	path, tokens := write(t, "kite", "1=s3cret1\n"), write(t, "dhan", "s3cret")
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, path, tokens)
		ctx, stop := context.WithCancel(t.Context())
		go w.files.poll(ctx)
		defer stop()
		for _, step := range []struct {
			name   string
			do     func()
			secret string
			ok     float64
			logged int
		}{
			{"as it was", func() {}, "s3cret1", 1, 0},
			{"new", func() { rewrite(t, path, "1=s3cret2") }, "s3cret2", 1, 1},
			{"empty", func() { rewrite(t, path, "") }, "s3cret2", 0, 1},
			{"still empty", func() {}, "s3cret2", 0, 0},
			{"wrong", func() { rewrite(t, path, "s3cret") }, "s3cret2", 0, 1},
			{"in quotes", func() { rewrite(t, path, `1="s3cret4"`) }, "s3cret2", 0, 1},
			{"still in quotes", func() {}, "s3cret2", 0, 0},
			{"with a byte order mark", func() { rewrite(t, path, "\ufeff1=s3cret4") }, "s3cret2", 0, 1},
			{"gone", func() { _ = os.Remove(path) }, "s3cret2", 0, 1},
			{"a directory", func() { _ = os.Mkdir(path, 0o700) }, "s3cret2", 0, 1},
			{"good again", func() { _ = os.Remove(path); rewrite(t, path, "1=s3cret2") }, "s3cret2", 1, 1},
			{"only touched", func() { rewrite(t, path, "1=s3cret2") }, "s3cret2", 1, 0},
			{"wrong", func() { rewrite(t, path, "1=") }, "s3cret2", 0, 1},
			{"new and good", func() { rewrite(t, path, "1=s3cret3") }, "s3cret3", 1, 1},
			{"too large", func() { rewrite(t, path, strings.Repeat("1=s3cret,", 1<<17)) }, "s3cret3", 0, 1},
		} {
			step.do()
			time.Sleep(pollInterval)
			synctest.Wait()
			w.wantSecret(t, step.secret)
			w.wantOK(t, step.ok)
			if got := w.logged(t); got != step.logged {
				t.Errorf("%s: %d lines in the log, want %d", step.name, got, step.logged)
			}
		}
	})
}

// TestWatchMount swaps the link on the way to the file, as a mounted Kubernetes Secret does.
func TestWatchMount(t *testing.T) {
	dir := t.TempDir()
	link := func(target string) {
		for _, err := range []error{os.Symlink(target, dir+"/..new"), os.Rename(dir+"/..new", dir+"/..data")} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for version, text := range map[string]string{"v1": "1=s3cret1", "v2": "1=s3cret2"} {
		if err := os.Mkdir(dir+"/"+version, 0o700); err != nil {
			t.Fatal(err)
		}
		rewrite(t, dir+"/"+version+"/kite", text)
	}
	link("v1")
	if err := os.Symlink("..data/kite", dir+"/kite"); err != nil {
		t.Fatal(err)
	}
	w := newWatched(t, dir+"/kite", "")
	w.wantSecret(t, "s3cret1")
	w.files.reload()
	link("v2")
	if !w.files.reload() {
		t.Error("the swap is not news")
	}
	w.wantSecret(t, "s3cret2")
}

// TestReload reloads as a refusal does: the secrets in effect are those in the file, whichever call read it before.
func TestReload(t *testing.T) {
	path := write(t, "kite", "1=s3cret1")
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, path, "")
		if w.files.reload() {
			t.Error("nothing changed, and it is news")
		}
		rewrite(t, path, "1=s3cret2")
		if !w.files.reload() {
			t.Error("a change right after a reading is missed")
		}
		w.wantSecret(t, "s3cret2")
		if !w.files.reload() {
			t.Error("who looked at the old secrets a moment ago does not learn that there are new ones")
		}
		time.Sleep(recentChange)
		if w.files.reload() {
			t.Error("it is news for ever")
		}
		_ = os.Remove(path)
		if w.files.reload() {
			t.Error("a file that is gone is news")
		}
		rewrite(t, path, "1=s3cret3")
		if !w.files.reload() {
			t.Error("a file that came back is missed")
		}
		w.wantSecret(t, "s3cret3")
	})
}

// TestReloadFlood: refused postbacks, which anybody can send, have the files read at a limited rate. They share reads.
func TestReloadFlood(t *testing.T) {
	path := write(t, "kite", "1=s3cret1")
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t, path, "")
		w.files.reload()
		begin := time.Now()
		for range 10 {
			w.files.reload()
		}
		if took := time.Since(begin); took != 10*readPause {
			t.Errorf("10 reads took %s, want %s", took, 10*readPause)
		}
	})
	w := newWatched(t, path, "")
	begin := time.Now()
	var calls sync.WaitGroup
	for range 1000 {
		calls.Go(func() { w.files.reload() })
	}
	calls.Wait()
	if took := time.Since(begin); took > 500*readPause {
		t.Errorf("1000 concurrent calls took %s", took)
	}
}

// TestBusPassword holds that each connection to a bus gets the password or token that is in the file at that time.
func TestBusPassword(t *testing.T) {
	path := write(t, "password", "s3cret1\n")
	for name, passwordOf := range map[string]func(*config, *credentials) func() string{
		"nats":        func(c *config, s *credentials) func() string { n := c.natsConfig(s); return n.Password },
		"kafka":       func(c *config, s *credentials) func() string { k := c.kafkaConfig(s); return k.Password },
		"kafka token": func(c *config, s *credentials) func() string { k := c.kafkaConfig(s); return k.OAuthToken },
	} {
		rewrite(t, path, "s3cret1\n")
		c := &config{NATSURL: "bus", NATSPasswordFile: path, KafkaPasswordFile: path, KafkaOAuthTokenFile: path}
		credentials, err := readCredentials(c.busSecrets())
		if err != nil {
			t.Fatal(err)
		}
		password := passwordOf(c, credentials)
		if got := password(); got != "s3cret1" {
			t.Errorf("%s: %q", name, got)
		}
		rewrite(t, path, "s3cret22\n")
		if got := password(); got != "s3cret22" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestReloadRace swaps secrets under readers; each sees one of the sets, whole.
func TestReloadRace(t *testing.T) {
	path := write(t, "kite", "1=a,2=a")
	w := newWatched(t, path, "")
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if s := w.kite().Secrets; len(s) != 2 || s[0].Secret != s[1].Secret {
					t.Errorf("half a set: %v", s)
					return
				}
				w.files.reload()
			}
		})
	}
	for i := range 50 {
		next := path + ".next"
		rewrite(t, next, []string{"1=a,2=a", "1=bb,2=bb"}[i%2])
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
		w.files.reload()
	}
	close(stop)
	readers.Wait()
}
