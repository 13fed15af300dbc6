package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v10"
	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postbridge/postbridge/publishers"
)

func newDoctor(t *testing.T, settings string) *doctor {
	t.Helper()
	c, credentials, err := readConfig(env.ToMap(environ(settings)))
	if err != nil {
		t.Fatalf("%s: %v", settings, err)
	}
	return &doctor{c, credentials}
}

// said is a line for each result.
func said(results []publishers.CheckResult) string {
	var b strings.Builder
	for _, f := range results {
		b.WriteString(f.Severity.String() + " " + f.Area + " " + f.String() + "\n")
	}
	return b.String()
}

// wantSaid wants a line that begins with the first text and has the others in it; with ! before, no such line.
func wantSaid(t *testing.T, results []publishers.CheckResult, begin string, words ...string) {
	t.Helper()
	begin, none := strings.CutPrefix(begin, "!")
	found := false
	for line := range strings.Lines(said(results)) {
		has := strings.HasPrefix(line, begin)
		for _, word := range words {
			has = has && strings.Contains(line, word)
		}
		found = found || has
	}
	if found == none {
		t.Errorf("%q %q is there: %t\n%s", begin, words, found, said(results))
	}
}

func TestDoctorRoutes(t *testing.T) {
	const long = "0123456789abcdef0123456789abcdef"
	for _, test := range []struct{ settings, begin, words string }{
		{"KITE_SECRETS=1=s", "warn routes /kite has the checksum for its only proof", "set POSTBRIDGE_KITE_TOKENS"},
		{"KITE_SECRETS=1=s KITE_TOKENS=" + long, "ok routes /kite/{token} needs a path token", ""},
		{"KITE_SECRETS=1=s KITE_TOKENS=" + long + ",short", "warn routes /kite/{token} accepts a token of less than 16", "POSTBRIDGE_KITE_TOKENS"},
		{"KITE_SECRETS=1=s", "!warn routes /dhan", ""},
		{"DHAN_TOKENS=short", "warn routes /dhan/{token} accepts a token of less than 16", "POSTBRIDGE_DHAN_TOKENS"},
		{"DHAN_TOKENS=" + long, "ok routes /dhan/{token} needs a path token", ""},
		{"UPSTOX_TOKENS=short", "warn routes /upstox/{token} accepts a token of less than 16", "POSTBRIDGE_UPSTOX_TOKENS"},
		{"UPSTOX_TOKENS=" + long, "ok routes /upstox/{token} needs a path token", ""},
		{"FYERS_TOKENS=short", "warn routes /fyers/{token} accepts a token of less than 16", "POSTBRIDGE_FYERS_TOKENS"},
		{"FYERS_TOKENS=" + long, "ok routes /fyers/{token} needs a path token", ""},
		{"FYERS_TOKENS=" + long, "!ok routes /kite", ""},
	} {
		results := newDoctor(t, test.settings).routes()
		wantSaid(t, results, test.begin, test.words)
		if strings.Contains(said(results), long) {
			t.Errorf("tells a token: %s", said(results))
		}
	}
}

func TestDoctorSecrets(t *testing.T) {
	readable := write(t, "open", "token-token-token")
	private, seed := write(t, "private", "1=s"), write(t, "seed", "SU")
	closed := t.TempDir()
	hidden := filepath.Join(closed, "open", "hidden")
	if err := os.Mkdir(filepath.Dir(hidden), 0o755); err != nil {
		t.Fatal(err)
	}
	rewrite(t, hidden, "secret")
	chmod(t, readable, 0o644)
	chmod(t, hidden, 0o644)
	letIn(t, filepath.Dir(readable))
	chmod(t, closed, 0o700)
	wantSaid(t, newDoctor(t, "NATS_URL=nats://bus NATS_NKEY_FILE="+seed+" DHAN_TOKENS_FILE="+readable).secrets(),
		"ok secrets "+seed)
	results := newDoctor(t, "NATS_URL=nats://bus NATS_USER=edge DHAN_TOKENS_FILE="+readable+
		" KITE_SECRETS_FILE="+private+" NATS_PASSWORD_FILE="+hidden).secrets()
	wantSaid(t, results, "warn secrets "+readable, "may be read by every user", "chmod 600")
	wantSaid(t, results, "!warn secrets "+private)
	wantSaid(t, results, "!warn secrets "+hidden)
	wantSaid(t, results, "!info")

	chmod(t, readable, 0o640) // of a group of ours, as Kubernetes makes it
	results = newDoctor(t, "DHAN_TOKENS_FILE="+readable).secrets()
	wantSaid(t, results, "ok secrets "+readable)
}

// TestDoctorSettings is that the doctor reports what serve warns of when it starts.
func TestDoctorSettings(t *testing.T) {
	d := newDoctor(t, "KITE_SECRETS=1=s KITE_CHECKSUM=user_id NATS_LISTEN=127.0.0.1:1 DATA_DIR="+t.TempDir())
	wantSaid(t, d.check(t.Context()), "warn routes POSTBRIDGE_KITE_CHECKSUM is user_id", "unset it")
}

// TestDoctorOwnListeners is that the secrets of what we serve ourselves are looked at as those of the brokers and
// buses are.
func TestDoctorOwnListeners(t *testing.T) {
	_, issue := issuing(t)
	pem, keyPEM := issue(1)
	certificate, key, token := write(t, "cert", pem), write(t, "key", keyPEM), write(t, "token", "admin-token")
	chmod(t, certificate, 0o644) // as everybody is shown it
	letIn(t, filepath.Dir(certificate))
	settings := "DHAN_TOKENS=t ADMIN_TOKEN_FILE=" + token + " TLS_CERT_FILE=" + certificate + " TLS_KEY_FILE=" + key
	wantSaid(t, newDoctor(t, settings).secrets(), "ok secrets "+key+" cannot be read by every user")
	wantSaid(t, newDoctor(t, settings).secrets(), "ok secrets "+token)
	for _, path := range []string{key, token} {
		chmod(t, path, 0o644)
		letIn(t, filepath.Dir(path))
		wantSaid(t, newDoctor(t, settings).secrets(), "warn secrets "+path, "may be read by every user")
	}
	wantSaid(t, newDoctor(t, settings).secrets(), "!warn secrets "+certificate)
}

// TestDoctorAccessTokens is that the access tokens of reconcile are checked as reconcile reads them, and none is shown.
func TestDoctorAccessTokens(t *testing.T) {
	const area = " reconcile POSTBRIDGE_KITE_ACCESS_TOKENS"
	good, empty := write(t, "good", "AB1234=key:secret-token\n"), write(t, "empty", "\n")
	broken, missing := write(t, "broken", "AB1234=secret-token\n"), filepath.Join(t.TempDir(), "missing")
	for _, test := range []struct{ settings, begin, words string }{
		{"", "!fail reconcile", ""},
		{"", "!ok reconcile", ""},
		{"KITE_ACCESS_TOKENS=AB1234=key:secret-token", "ok" + area + " can be read", ""},
		{"KITE_ACCESS_TOKENS=AB1234=secret-token", "fail" + area + " cannot be used: entry 1", "api_key:access_token"},
		{"KITE_ACCESS_TOKENS_FILE=" + good, "ok" + area + "_FILE can be read", ""},
		{"KITE_ACCESS_TOKENS_FILE=" + empty, "fail" + area + "_FILE cannot be used: it is empty", ""},
		{"KITE_ACCESS_TOKENS_FILE=" + broken, "fail" + area + "_FILE cannot be used: entry 1", "correct it"},
		{"KITE_ACCESS_TOKENS_FILE=" + missing, "fail" + area + "_FILE cannot be used", "run doctor as the user of"},
		{"KITE_ACCESS_TOKENS_FILE=" + t.TempDir(), "fail" + area + "_FILE cannot be used", "not a regular file"},
		{"DHAN_ACCESS_TOKENS=1=t", "ok reconcile POSTBRIDGE_DHAN_ACCESS_TOKENS can be read", ""},
		{"UPSTOX_ACCESS_TOKENS=1=t", "ok reconcile POSTBRIDGE_UPSTOX_ACCESS_TOKENS can be read", ""},
		{"FYERS_ACCESS_TOKENS=1=t", "fail reconcile POSTBRIDGE_FYERS_ACCESS_TOKENS cannot be used", "app_id:"},
	} {
		results := newDoctor(t, "DHAN_TOKENS=t "+test.settings).accessTokens()
		wantSaid(t, results, test.begin, test.words)
		if strings.Contains(said(results), "secret") {
			t.Errorf("tells a token: %s", said(results))
		}
	}

	chmod(t, good, 0o644)
	letIn(t, filepath.Dir(good))
	wantSaid(t, newDoctor(t, "DHAN_TOKENS=t KITE_ACCESS_TOKENS_FILE="+good).secrets(),
		"warn secrets "+good, "may be read by every user", "chmod 600")
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// letIn lets everybody into a directory of the test's.
func letIn(t *testing.T, dir string) {
	t.Helper()
	for ; dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		chmod(t, dir, 0o755)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if !othersMay(0o001, dir) {
			t.Skipf("others may not go into %s", dir)
		}
	}
}

func TestDoctorDisk(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	disk := func(settings string) []publishers.CheckResult {
		t.Helper()
		d := newDoctor(t, "DHAN_TOKENS=t DATA_DIR="+data+" "+settings)
		return slices.Concat(d.disk(), d.fsync())
	}
	wantSaid(t, disk(""), "info disk "+data+" does not exist; the disk of "+dir+" is checked")
	if _, err := os.Stat(data); err == nil {
		t.Error("the doctor made it")
	}

	if err := os.MkdirAll(filepath.Join(data, "spool"), 0o700); err != nil {
		t.Fatal(err)
	}
	results := disk("SPOOL_MAX_BYTES=1MiB SPOOL_MIN_FREE_BYTES=1 NATS_MAX_BYTES=1")
	wantSaid(t, results, "ok disk "+data, "enough space")
	wantSaid(t, results, "!warn disk "+data+" has")
	if !strings.Contains(said(results), "makes 4KiB durable in") {
		t.Errorf("no fsync is measured:\n%s", said(results))
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) != 1 {
		t.Errorf("it left %v, %v", entries, err)
	}
	wantSaid(
		t,
		disk("SPOOL_MAX_BYTES=1024TiB NATS_URL=bus"),
		"warn disk "+data,
		"may take 1024TiB more",
		"POSTBRIDGE_SPOOL_MAX_BYTES",
	)
	wantSaid(t, disk("SPOOL_MIN_FREE_BYTES=1024TiB"), "fail disk "+data, "less than its reserve", "503")

	wrong := &doctor{newDoctor(t, "DHAN_TOKENS=t").config, nil}
	wrong.config.DataDir = write(t, "file", "")
	wantSaid(t, wrong.disk(), "fail disk "+wrong.config.DataDir+" cannot be used", "not a directory")
}

// TestDoctorMemory is that data in memory is a failure.
func TestDoctorMemory(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "postbridge-")
	if err != nil || runtime.GOOS != "linux" {
		t.Skip("no tmpfs")
	}
	defer os.RemoveAll(dir)
	wantSaid(
		t,
		newDoctor(t, "DHAN_TOKENS=t DATA_DIR="+dir).disk(),
		"fail disk "+dir+" is in memory (tmpfs)",
		"POSTBRIDGE_DATA_DIR",
	)
}

// TestDoctorProbe is that a probe is stored as a dead letter on each bus, each time, and that without one nothing is.
func TestDoctorProbe(t *testing.T) {
	t.Parallel()
	address, js := startRestrictedNATS(t)
	fake := startKafka(t, 0, t.TempDir())
	stream := func(name string) (s jetstream.Stream) {
		t.Helper()
		s, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{
			Name: strings.ToUpper(name), Subjects: []string{name + ".>"}, AllowDirect: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	destinations := []string{"orders", "rejects", "deadletters"}
	want := func(deadletters int) {
		t.Helper()
		for _, name := range destinations {
			n := 0
			if name == "deadletters" {
				n = deadletters
			}
			if got := int(stream(name).CachedInfo().State.LastSeq); got != n {
				t.Errorf("stream %s has %d messages, want %d", name, got, n)
			}
			records := 0
			for _, p := range fake.PartitionInfos(name) {
				records += int(p.HighWatermark)
			}
			if records != n {
				t.Errorf("topic %s has %d records, want %d", name, records, n)
			}
		}
	}
	for _, name := range destinations {
		stream(name)
		fake.addTopic(t, name, 6)
	}
	d := newDoctor(t, fmt.Sprintf("DHAN_TOKENS=t DATA_DIR=%s PUBLISH=nats,kafka KAFKA_BROKERS=127.0.0.1:%d "+
		"NATS_URL=nats://edge:secret@%s", t.TempDir(), fake.port, address))
	results := d.check(t.Context())
	// The user may not read what is stored. That is for this check; a probe is stored if the bus acknowledges it.
	wantSaid(t, results, "warn nats stream ORDERS cannot be read", "stored twice")
	wantSaid(t, results, "ok kafka the bus")
	want(0)

	for n := range 2 {
		results = d.probe(t.Context())
		wantSaid(t, results, "ok nats the probe is stored")
		wantSaid(t, results, "ok kafka the probe is stored")
		want(n + 1)
	}
	m, err := stream("deadletters").GetLastMsgForSubject(t.Context(), "deadletters.doctor")
	if err != nil || m.Header.Get("ce-type") != "postbridge.probe.v1" {
		t.Errorf("%+v, %v", m, err)
	}
	tail := fake.tail(t, "--bus kafka --destination deadletters --from start --count 2 --timeout 20s --headers")
	for line := range strings.Lines(tail.stdout) {
		if !strings.Contains(line, `"key":"doctor.`) || !strings.Contains(line, `"ce_type":"postbridge.probe.v1"`) {
			t.Error(line)
		}
	}
	if strings.Count(tail.stdout, "\n") != 2 {
		t.Errorf("%+v", tail)
	}

	if err := js.DeleteStream(t.Context(), "DEADLETTERS"); err != nil {
		t.Fatal(err)
	}
	if err := fake.DeleteTopic("deadletters"); err != nil {
		t.Fatal(err)
	}
	results = d.probe(t.Context())
	wantSaid(t, results, "fail nats the probe is not stored", "stream DEADLETTERS is missing", "create it")
	wantSaid(t, results, "fail kafka the probe is not stored", "topic deadletters", "it is missing: create it")
	_, err = js.Stream(t.Context(), "DEADLETTERS")
	if !errors.Is(err, jetstream.ErrStreamNotFound) || fake.TopicInfo("deadletters") != nil {
		t.Errorf("the probe created it: %v", err)
	}
}

// TestDoctorProbeKafka is that Kafka refuses a probe for what it would refuse an event of serve for: the compression,
// the producer id, the acknowledgement of all replicas.
func TestDoctorProbeKafka(t *testing.T) {
	t.Parallel()
	const lz4 = 3
	for name, test := range map[string]struct {
		fault kfake.Fault
		want  string
	}{
		"compression": {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.UnsupportedForMessageFormat,
			When: func(r kmsg.Request) bool { return producedBatch(r).Attributes&7 == lz4 }},
			"set POSTBRIDGE_KAFKA_COMPRESSION"},
		"producer id": {kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.ClusterAuthorizationFailed},
			"cannot get a producer id: [31] "},
		"idempotence": {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.PolicyViolation,
			When: func(r kmsg.Request) bool { return producedBatch(r).ProducerID >= 0 }}, "[44] "},
		"acks": {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas,
			When: func(r kmsg.Request) bool { return r.(*kmsg.ProduceRequest).Acks == -1 }}, "[19] "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := startKafka(t, 0, t.TempDir())
			fake.addTopic(t, "deadletters", 1)
			test.fault.Count = -1
			fake.Fault(test.fault)
			d := newDoctor(t, fmt.Sprintf("DHAN_TOKENS=t PUBLISH=kafka KAFKA_BROKERS=127.0.0.1:%d", fake.port))
			results := d.probe(t.Context())
			wantSaid(t, results, "fail kafka the probe is not stored", "publishing to deadletters", test.want)
		})
	}
}

// producedBatch is the first batch of a request to produce; the zero value if it has none.
func producedBatch(r kmsg.Request) (batch kmsg.RecordBatch) {
	_ = batch.ReadFrom(r.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records)
	return batch
}

// startRestrictedNATS starts a server whose user edge may publish and look at streams, but not read them. js is of an
// operator.
func startRestrictedNATS(t *testing.T) (address string, js jetstream.JetStream) {
	t.Helper()
	may := &server.Permissions{Publish: &server.SubjectPermission{
		Allow: []string{"orders.>", "rejects.>", "deadletters.>", "$JS.API.STREAM.INFO.*", "$SYS.REQ.USER.INFO"},
	}}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		Users: []*server.User{
			{Username: "admin", Password: "secret"}, {Username: "edge", Password: "secret", Permissions: may},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server does not become ready")
	}
	conn, err := natsgo.Connect(s.ClientURL(), natsgo.UserInfo("admin", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if js, err = jetstream.New(conn); err != nil {
		t.Fatal(err)
	}
	return s.Addr().String(), js
}

// TestDoctorReport holds what people and programs read.
func TestDoctorReport(t *testing.T) {
	results := []publishers.CheckResult{
		{Area: "nats", What: "stream ORDERS", Text: "keeps messages in files"},
		{Area: "nats", What: "stream ORDERS", Text: "has 3 replicas"},
		{Area: "nats", What: "stream ORDERS", Severity: publishers.Warn, Text: "has <1 day>", Do: "raise it"},
		{Area: "nats", What: "stream ORDERS", Text: "can be asked"},
		{Area: "disk", What: "data", Severity: publishers.Info, Text: "is not there", Do: "start serve"},
	}
	const want = `ok   nats    stream ORDERS keeps messages in files
ok   nats    stream ORDERS has 3 replicas
warn nats    stream ORDERS has <1 day>: raise it
ok   nats    stream ORDERS can be asked
info disk    data is not there: start serve
the worst is warn: 3 ok, 1 info, 1 warn, 0 fail
`
	if got := textReport(results); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	var object struct {
		Grade    string
		Findings []struct{ Area, What, Grade, Text, Do string }
	}
	text := jsonReport(results)
	if err := json.Unmarshal([]byte(text), &object); err != nil || object.Grade != "warn" || len(object.Findings) != 5 ||
		object.Findings[2].Grade != "warn" || object.Findings[2].Do != "raise it" ||
		!strings.Contains(text, "<1 day>") {
		t.Errorf("%v: %s", err, text)
	}
}

// TestDoctorExit holds the codes that need no bus to be right; a machine's own disk and clock may be graded anything.
func TestDoctorExit(t *testing.T) {
	if got := runWith(t, nil, "doctor"); got.code != 2 || got.stdout != "" {
		t.Errorf("without a configuration: %+v", got)
	}
	got := runWith(t, environ("DHAN_TOKENS=t NATS_URL=nats://127.0.0.1:1 DATA_DIR="+t.TempDir()), "doctor")
	if got.code != 1 || got.stderr != "" || !strings.Contains(got.stdout, "\nthe worst is fail: ") {
		t.Errorf("without a bus: %+v", got)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	got = runInput(ctx, "", environ("DHAN_TOKENS=t NATS_URL=nats://127.0.0.1:1 DATA_DIR="+t.TempDir()), "doctor")
	if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "doctor: interrupted") {
		t.Errorf("stopped: %+v", got)
	}
	var stderr strings.Builder
	for grade, code := range map[publishers.Severity]int{publishers.Warn: 3, publishers.Fail: 1} {
		if got := exitCode(&severityError{grade}, &stderr); got != code || stderr.Len() > 0 {
			t.Errorf("%v: exit %d, %q", grade, got, stderr.String())
		}
	}
}

func TestDoctorMetric(t *testing.T) {
	grades := newGrades()
	registry := prometheus.NewRegistry()
	registry.MustRegister(grades)
	find := func(area string, g publishers.Severity) publishers.CheckResult {
		return publishers.CheckResult{Area: area, Severity: g}
	}
	export(grades, []publishers.CheckResult{
		find("nats", publishers.OK), find("nats", publishers.Fail), find("disk", publishers.Warn),
		find("disk", publishers.OK), find("clock", publishers.Info),
	})
	const want = `# HELP postbridge_doctor_grade The worst that 'postbridge doctor' finds: 0 ok, 1 warn, 2 fail.
# TYPE postbridge_doctor_grade gauge
postbridge_doctor_grade{area="clock"} 0
postbridge_doctor_grade{area="disk"} 1
postbridge_doctor_grade{area="nats"} 2
`
	scrape := func() string {
		answer := httptest.NewRecorder()
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).
			ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
		return answer.Body.String()
	}
	if got := scrape(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	export(grades, []publishers.CheckResult{find("nats", publishers.OK)})
	if got := scrape(); !strings.Contains(got, `{area="nats"} 0`) {
		t.Errorf("mended, and still\n%s", got)
	}
}
