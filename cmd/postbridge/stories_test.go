package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestStories runs the real binary as its users do: testdata/stories has one story a file.
func TestStories(t *testing.T) {
	// Programs do not start with SIGHUP ignored, even if the tests did (nohup).
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangups) })
	testscript.Run(t, testscript.Params{
		Dir: "testdata/stories",
		Setup: func(e *testscript.Env) error {
			samples, err := os.Getwd()
			e.Setenv("SAMPLES", samples+"/../../deploy/samples")
			e.Setenv("DEPLOY", samples+"/../../deploy")
			e.Setenv("TOP", samples+"/../..")
			e.Setenv("POSTBRIDGE_KITE_SECRETS", "1234=0hdv7iw5examplesecret")
			e.Setenv("POSTBRIDGE_DHAN_TOKENS", "dev-dhan-token")
			e.Setenv("POSTBRIDGE_DATA_DIR", e.WorkDir+"/data")
			// With -race, a process in which one is found ends, for its story to fail; so none has to wait at its end,
			// as they do for a second, until others are printed.
			e.Setenv("GORACE", "halt_on_error=1 atexit_sleep_ms=0")
			e.Values[aCollector{}] = new(storyCollector)
			e.Values[storyKafka{}] = &storyKafka{t: e.T().(testing.TB)}
			e.Values[storyTLS{}] = new(storyTLS)
			e.Values[booksKey{}] = &storyBooks{answers: make(map[string]bookAnswer), requests: make(map[string]int)}
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"listen":    (&addresses{given: make(map[string]bool)}).cmdListen,
			"await":     cmdAwait,
			"says":      cmdSays,
			"exported":  cmdExported,
			"runbook":   cmdRunbook,
			"post":      cmdPost,
			"get":       cmdGet,
			"head":      cmdHead,
			"stored":    cmdStored,
			"supervise": cmdSupervise,
			"status":    cmdStatus,
			"streams":   cmdStreams,
			"kafka":     cmdKafka,
			"topics":    cmdTopics,
			"consumed":  cmdConsumed,
			"document":  cmdDocument,
			"build":     cmdBuild,
			"python":    cmdPython,
			"placed":    cmdPlaced,
			"metrics":   cmdMetrics,
			"book":      cmdBook,
			"asked":     cmdAsked,
			"counted":   cmdCounted,
			"dated":     cmdDated,
			"rows":      cmdRows,

			"guess":       cmdGuess,
			"certificate": cmdCertificate,
			"shown":       cmdShown,
			"collector":   cmdCollector,
			"traced":      cmdTraced,
		},
	})
}

// addresses gives out free addresses of this machine, none of them twice: stories run at the same time. Their ports are
// below those that the system gives out by itself: nobody takes one while its program is down, and who dials one then
// does not reach itself.
type addresses struct {
	mu    sync.Mutex
	given map[string]bool // guarded by mu
}

// cmdListen sets each name to an address.
func (a *addresses) cmdListen(ts *testscript.TestScript, _ bool, names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(names) > 0 {
		address := fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(12_000))
		l, err := net.Listen("tcp", address)
		if err != nil || a.given[address] {
			continue
		}
		ts.Check(l.Close())
		a.given[address] = true
		ts.Setenv(names[0], address)
		names = names[1:]
	}
}

// eventually retries until try succeeds, for a minute. The pause grows with the cost of a try, so that a story that
// reads a whole stream leaves the processor to the programs it waits for.
func eventually(ts *testscript.TestScript, what string, try func() error) {
	err := errors.New("not tried")
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		begin := time.Now()
		if err = try(); err == nil {
			return
		}
		time.Sleep(min(max(20*time.Millisecond, 3*time.Since(begin)), time.Second))
	}
	ts.Fatalf("%s: not within a minute: %v", what, err)
}

// cmdAwait waits until a URL answers 200, or with ! until it does not.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	eventually(ts, args[0], func() error {
		resp, err := storyClient(ts).Get(args[0])
		if err == nil {
			_ = resp.Body.Close()
		}
		if ok := err == nil && resp.StatusCode == http.StatusOK; ok == neg {
			return fmt.Errorf("answered %v, %w", resp, err)
		}
		return nil
	})
}

// cmdSays waits until a file, or a URL, has a text in it: says FILE TEXT.
func cmdSays(ts *testscript.TestScript, _ bool, args []string) {
	read := func() ([]byte, error) { return os.ReadFile(ts.MkAbs(args[0])) }
	if strings.HasPrefix(args[0], "http") {
		read = func() ([]byte, error) {
			resp, err := storyClient(ts).Get(args[0])
			if err != nil {
				return nil, err
			}
			defer resp.Body.Close()
			return io.ReadAll(resp.Body)
		}
	}
	eventually(ts, args[1], func() error {
		text, err := read()
		if err == nil && !strings.Contains(string(text), args[1]) {
			err = fmt.Errorf("it says\n%s", text)
		}
		return err
	})
}

// cmdExported waits until each metric that a file names, postbridge's own or of the process, is at the URL of serve; with
// the argument reconcile, until those of reconcile are at its URL: exported FILE URL [reconcile].
func cmdExported(ts *testscript.TestScript, _ bool, args []string) {
	file, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	names := regexp.MustCompile(`\b(postbridge|process|go)_[a-z_]+\b`).FindAllString(string(file), -1)
	reconcile := len(args) > 2
	names = slices.DeleteFunc(names, func(name string) bool {
		return strings.HasPrefix(name, "postbridge_reconcile_") != reconcile
	})
	if len(names) == 0 {
		ts.Fatalf("%s names no metric", args[0])
	}
	eventually(ts, "the metrics of "+args[0], func() error {
		resp, err := http.Get(args[1])
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		metrics, err := io.ReadAll(resp.Body)
		for _, name := range names {
			if err == nil && !strings.Contains(string(metrics), "\n"+name+"{") &&
				!strings.Contains(string(metrics), "\n"+name+" ") {
				err = fmt.Errorf("%s is not exported", name)
			}
		}
		return err
	})
}

// cmdRunbook wants a section for each alert, and no other, which the alert points to: runbook RULES README.
func cmdRunbook(ts *testscript.TestScript, _ bool, args []string) {
	find := func(file, pattern string) (names []string) {
		text, err := os.ReadFile(ts.MkAbs(file))
		ts.Check(err)
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
		return names
	}
	alerts, sections := find(args[0], `alert: (\w+)`), find(args[1], `(?m)^## (Postbridge\w+)$`)
	if len(alerts) == 0 || !slices.Equal(alerts, sections) {
		ts.Fatalf("the alerts are %v, the sections %v", alerts, sections)
	}
	links := find(args[0], `runbook_url: deploy/README.md#(\w+)`)
	if !slices.EqualFunc(alerts, links, strings.EqualFold) {
		ts.Fatalf("the alerts are %v, their links %v", alerts, links)
	}
}

// cmdPost posts a file and wants a status: post URL FILE STATUS [HEADER:VALUE]. The answer goes to the log.
func cmdPost(ts *testscript.TestScript, _ bool, args []string) {
	body, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	req, err := http.NewRequest(http.MethodPost, args[0], strings.NewReader(string(body)))
	ts.Check(err)
	for _, header := range args[3:] {
		name, value, _ := strings.Cut(header, ":")
		req.Header.Set(name, value)
	}
	resp, err := storyClient(ts).Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	ts.Check(err)
	ts.Logf("%s %s", resp.Status, answer)
	if strconv.Itoa(resp.StatusCode) != args[2] {
		ts.Fatalf("%s %s was answered %s %s, want %s", args[0], args[1], resp.Status, answer, args[2])
	}
}

// cmdGet gets a URL: get URL [HEADER:VALUE]. The answer goes to stdout; with ! it has to be an error.
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	request(ts, http.MethodGet, neg, args)
}

// cmdHead is cmdGet with HEAD.
func cmdHead(ts *testscript.TestScript, neg bool, args []string) {
	request(ts, http.MethodHead, neg, args)
}

func request(ts *testscript.TestScript, method string, neg bool, args []string) {
	req, err := http.NewRequest(method, args[0], nil)
	ts.Check(err)
	for _, header := range args[1:] {
		name, value, _ := strings.Cut(header, ":")
		req.Header.Set(name, value)
	}
	resp, err := storyClient(ts).Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
	if neg != (resp.StatusCode >= 400) {
		ts.Fatalf("%s was answered %s", args[0], resp.Status)
	}
}

// cmdGuess posts what proves nothing, so often, and wants the status at first, then 429 most of the time: guess URL
// STATUS TIMES.
func cmdGuess(ts *testscript.TestScript, _ bool, args []string) {
	times, err := strconv.Atoi(args[2])
	ts.Check(err)
	limited := 0
	for range times {
		resp, err := http.Post(args[0], "application/json", strings.NewReader("{}"))
		ts.Check(err)
		answer, err := io.ReadAll(resp.Body)
		ts.Check(errors.Join(err, resp.Body.Close()))
		switch {
		case strconv.Itoa(resp.StatusCode) == args[1]:
		case resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") != "":
			limited++
		default:
			ts.Fatalf("%s was answered %s %s", args[0], resp.Status, answer)
		}
	}
	if limited < times/2 {
		ts.Fatalf("429 were only %d of %d", limited, times)
	}
}

// storyTLS is the authority of a story, nil until it issues something.
type storyTLS struct{ *authority }

// storyClient trusts the authority of the story, if there is one.
func storyClient(ts *testscript.TestScript) *http.Client {
	a := ts.Value(storyTLS{}).(*storyTLS)
	if a.authority == nil {
		return http.DefaultClient
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool},
		DisableKeepAlives: true}}
}

// cmdCertificate makes a certificate and its key, DIR/tls.crt and DIR/tls.key, and ca.crt, which issues all of a story:
// certificate SERIAL DIR.
func cmdCertificate(ts *testscript.TestScript, _ bool, args []string) {
	a := ts.Value(storyTLS{}).(*storyTLS)
	if a.authority == nil {
		var err error
		a.authority, err = newAuthority()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs("ca.crt"), a.pem(), 0o600))
	}
	serial, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	certificate, key, err := a.issue(serial, 30*24*time.Hour)
	ts.Check(err)
	dir := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(os.WriteFile(dir+"/tls.crt", certificate, 0o600))
	ts.Check(os.WriteFile(dir+"/tls.key", key, 0o600))
}

// cmdShown waits until an address shows the certificate with that serial number: shown ADDRESS SERIAL.
func cmdShown(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, "certificate "+args[1], func() error {
		conn, err := tls.Dial("tcp", args[0], &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // not trusted
		if err != nil {
			return err
		}
		defer conn.Close()
		if got := conn.ConnectionState().PeerCertificates[0].SerialNumber.String(); got != args[1] {
			return fmt.Errorf("shown is %s", got)
		}
		return nil
	})
}

// cmdSupervise plays the supervisor of a program that is killed again and again: supervise TIMES FROM TO READY_URL
// COMMAND... starts the command, waits until it is ready, and kills it with -9 at a moment between the two after that,
// so many times. With - for the URL the moment counts from the start.
func cmdSupervise(ts *testscript.TestScript, _ bool, args []string) {
	times, err1 := strconv.Atoi(args[0])
	from, err2 := time.ParseDuration(args[1])
	to, err3 := time.ParseDuration(args[2])
	ts.Check(errors.Join(err1, err2, err3))
	for range times {
		startAndKill(ts, from+rand.N(to-from), args[3], args[4:])
	}
}

func startAndKill(ts *testscript.TestScript, after time.Duration, ready string, command []string) {
	var said bytes.Buffer
	// The shell finds the command on the story's PATH.
	cmd := exec.Command("sh", append([]string{"-c", `exec "$@"`, "sh"}, command...)...)
	cmd.Dir, cmd.Env, cmd.Stderr = ts.MkAbs("."), storyEnviron(ts), &said
	ts.Check(cmd.Start())
	kill := sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it may have ended, which Wait tells
		_ = cmd.Wait()
	})
	killed := false
	defer func() {
		if kill(); !killed {
			ts.Logf("%s: %v\n%s", command, cmd.ProcessState, said.Bytes())
		}
	}()
	if ready != "-" {
		cmdAwait(ts, false, []string{ready})
	}
	time.Sleep(after) // this is the story: kills come at any moment
	kill()
	if killed = !cmd.ProcessState.Exited(); !killed {
		ts.Fatalf("it ended by itself")
	}
}

// storyEnviron is what a story has set of the names that serve looks at.
func storyEnviron(ts *testscript.TestScript) []string {
	env := []string{"PATH=" + ts.Getenv("PATH"), "GORACE=" + ts.Getenv("GORACE")}
	for _, name := range settingNames() {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// cmdStatus waits until /status says what is wanted and its accounts balance: status ADMIN_ADDRESS WANT..., where each
// is a path and a value, like buses.nats.waiting=0, or a bound, like buses.nats.waiting>0.
func cmdStatus(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, strings.Join(args[1:], " "), func() error {
		resp, err := http.Get("http://" + args[0] + "/status")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var all map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
			return err
		}
		for _, want := range args[1:] {
			if err := compare(all, want); err != nil {
				return err
			}
		}
		return balance(all)
	})
}

func compare(all map[string]any, want string) error {
	i := strings.IndexAny(want, "=<>")
	path, value := want[:i], want[i+1:]
	got := lookUp(all, path)
	number, _ := got.(float64)
	bound, _ := strconv.ParseFloat(value, 64)
	if want[i] == '=' && fmt.Sprint(got) == value ||
		want[i] == '<' && number < bound || want[i] == '>' && number > bound {
		return nil
	}
	return fmt.Errorf("%s is %v", path, got)
}

func lookUp(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

// balance checks the accounts of a status in which nothing is in flight.
func balance(all map[string]any) error {
	num := func(path string) int { f, _ := lookUp(all, path).(float64); return int(f) }
	brokers, _ := all["postbacks"].(map[string]any)
	for broker := range brokers {
		p := "postbacks." + broker + "."
		if r := num(p + "received"); r != num(p+"accepted")+num(p+"repeated")+num(p+"other")+num(p+"refused")+num(p+"failed") {
			return fmt.Errorf("%d postbacks of %s do not balance: %v", r, broker, lookUp(all, "postbacks."+broker))
		}
	}
	buses, _ := all["buses"].(map[string]any)
	if len(buses) == 0 {
		return errors.New("there is no bus yet")
	}
	for bus := range buses {
		b := "buses." + bus + "."
		if num("spool.last") != num(b+"committed")+num(b+"waiting") ||
			num(b+"committed") != num(b+"stored")+num(b+"deadlettered")+num(b+"quarantined")+num(b+"skipped") {
			return fmt.Errorf("%s does not balance: %v, last %d", bus, buses[bus], num("spool.last"))
		}
	}
	return nil
}
