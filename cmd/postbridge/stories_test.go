package main

import (
	"bufio"
	"context"
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestStories runs the real binary as its users do: testdata/stories has one story a file.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/stories",
		Setup: func(e *testscript.Env) error {
			samples, err := os.Getwd()
			e.Setenv("SAMPLES", samples+"/../../deploy/samples")
			e.Setenv("POSTBRIDGE_KITE_SECRETS", "1234=0hdv7iw5examplesecret")
			e.Setenv("POSTBRIDGE_DHAN_TOKENS", "dev-dhan-token")
			e.Setenv("POSTBRIDGE_DATA_DIR", e.WorkDir+"/data")
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"listen":    (&addresses{given: make(map[string]bool)}).cmdListen,
			"await":     cmdAwait,
			"post":      cmdPost,
			"stored":    cmdStored,
			"supervise": cmdSupervise,
			"status":    cmdStatus,
		},
	})
}

// natsServer is a NATS server in a process of its own: nats-server ADDRESS DIRECTORY.
func natsServer() {
	stop, _, err := startNATS(os.Args[1], os.Args[2])
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	<-ctx.Done()
}

// startNATS starts a NATS server; port 0 is a free one.
func startNATS(listen, dir string) (stop func(), address string, err error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, "", err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, "", err
	}
	if n == 0 {
		n = server.RANDOM_PORT
	}
	s, err := server.NewServer(&server.Options{Host: host, Port: n, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		return nil, "", err
	}
	stop = func() {
		s.Shutdown()
		s.WaitForShutdown()
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		stop()
		return nil, "", errors.New("the NATS server does not become ready")
	}
	return stop, s.Addr().String(), nil
}

// addresses gives out free addresses of this machine, none of them twice: stories run at the same time.
type addresses struct {
	mu    sync.Mutex
	given map[string]bool // guarded by mu
}

// cmdListen sets each name to an address.
func (a *addresses) cmdListen(ts *testscript.TestScript, _ bool, names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(names) > 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // until all are chosen, so that the next is another
		if address := l.Addr().String(); !a.given[address] {
			a.given[address] = true
			ts.Setenv(names[0], address)
			names = names[1:]
		}
	}
}

// eventually tries until it works, for half a minute.
func eventually(ts *testscript.TestScript, what string, try func() error) {
	err := errors.New("not tried")
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	ts.Fatalf("waited in vain for %s: %v", what, err)
}

// cmdAwait waits until a URL answers 200, or with ! until it does not.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	eventually(ts, args[0], func() error {
		resp, err := http.Get(args[0])
		if err == nil {
			_ = resp.Body.Close()
		}
		if ok := err == nil && resp.StatusCode == http.StatusOK; ok == neg {
			return fmt.Errorf("answered %v, %w", resp, err)
		}
		return nil
	})
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
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	ts.Check(err)
	ts.Logf("%s %s", resp.Status, answer)
	if strconv.Itoa(resp.StatusCode) != args[2] {
		ts.Fatalf("%s %s was answered %s %s, want %s", args[0], args[1], resp.Status, answer, args[2])
	}
}

// cmdStored wants every acknowledged postback on the stream, none of them twice, and each order in order:
// stored NATS_ADDRESS ACKED_FILE.
func cmdStored(ts *testscript.TestScript, _ bool, args []string) {
	acked := ackedIDs(ts, args[1])
	if len(acked) == 0 {
		ts.Fatalf("%s has no acknowledged postback", args[1])
	}
	eventually(ts, "every acknowledged postback on the stream", func() error {
		s, err := readStream(args[0])
		if err != nil {
			return err
		}
		missing := 0
		for id := range acked {
			if s.times[id] == 0 {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d acknowledged are not among %d stored", missing, len(acked), s.messages)
		}
		if s.wrong != "" {
			ts.Fatalf("%s", s.wrong)
		}
		for id, n := range s.times {
			if n > 1 {
				ts.Fatalf("event %s is stored %d times", id, n)
			}
		}
		ts.Logf("%d acknowledged, %d stored, each once", len(acked), s.messages)
		return nil
	})
}

func ackedIDs(ts *testscript.TestScript, file string) map[string]bool {
	f, err := os.Open(ts.MkAbs(file))
	ts.Check(err)
	defer f.Close()
	ids := make(map[string]bool)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		id, _, _ := strings.Cut(lines.Text(), "\t")
		ids[id] = true
	}
	return ids
}

// stored is what a stream holds.
type stored struct {
	messages int
	times    map[string]int // by event id
	wrong    string
}

func readStream(addr string) (*stored, error) {
	nc, err := nats.Connect("nats://" + addr)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := js.Stream(ctx, "ORDERS")
	if err != nil {
		return nil, err
	}
	s := &stored{messages: int(stream.CachedInfo().State.Msgs), times: make(map[string]int)}
	if s.messages == 0 {
		return s, nil
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	defer messages.Stop()
	last := make(map[string]string) // sequence by subject
	for range s.messages {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, err
		}
		s.times[m.Headers().Get("ce-id")]++
		sequence := m.Headers().Get("ce-sequence")
		if sequence <= last[m.Subject()] {
			s.wrong = fmt.Sprintf("%s: %s is stored after %s", m.Subject(), sequence, last[m.Subject()])
		}
		last[m.Subject()] = sequence
	}
	return s, nil
}

// cmdSupervise plays the supervisor of a program that is killed again and again: supervise TIMES READY_URL COMMAND...
// starts the command, waits until it is ready, lets it run for a while and kills it with -9, so many times.
func cmdSupervise(ts *testscript.TestScript, _ bool, args []string) {
	times, err := strconv.Atoi(args[0])
	ts.Check(err)
	for range times {
		// The shell finds the command on the story's PATH.
		cmd := exec.Command("sh", append([]string{"-c", `exec "$@"`, "sh"}, args[2:]...)...)
		cmd.Dir, cmd.Env = ts.MkAbs("."), storyEnviron(ts)
		ts.Check(cmd.Start())
		if args[1] == "-" {
			time.Sleep(300 * time.Millisecond) // for how long it is there, not for something to happen
		} else {
			cmdAwait(ts, false, args[1:2])
		}
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond) // so that kills come at any moment
		ts.Check(cmd.Process.Kill())
		_ = cmd.Wait() // says that it was killed
	}
}

// storyEnviron is what a story has set of the names that serve looks at.
func storyEnviron(ts *testscript.TestScript) []string {
	env := []string{"PATH=" + ts.Getenv("PATH")}
	for _, name := range []string{"KITE_SECRETS", "DHAN_TOKENS", "DATA_DIR", "LISTEN", "ADMIN_LISTEN", "NATS_LISTEN", "NATS_URL"} {
		if v := ts.Getenv("POSTBRIDGE_" + name); v != "" {
			env = append(env, "POSTBRIDGE_"+name+"="+v)
		}
	}
	return env
}

// cmdStatus waits until /status holds what is wanted and its accounts balance: status ADMIN_ADDRESS FIELD=VALUE...,
// where a field is a path like buses.nats.waiting.
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
			path, value, _ := strings.Cut(want, "=")
			if got := fmt.Sprint(lookUp(all, path)); got != value {
				return fmt.Errorf("%s is %s", path, got)
			}
		}
		return balance(all)
	})
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
	for _, broker := range []string{"kite", "dhan"} {
		p := "postbacks." + broker + "."
		if r := num(p + "received"); r != num(p+"accepted")+num(p+"repeated")+num(p+"refused")+num(p+"failed") {
			return fmt.Errorf("%d postbacks of %s do not balance: %v", r, broker, lookUp(all, "postbacks."+broker))
		}
	}
	b := "buses.nats."
	if num("spool.last") != num(b+"committed")+num(b+"waiting") ||
		num(b+"committed") != num(b+"stored")+num(b+"deadlettered")+num(b+"quarantined")+num(b+"skipped") {
		return fmt.Errorf("the bus does not balance: %v, last %d", lookUp(all, "buses.nats"), num("spool.last"))
	}
	return nil
}
