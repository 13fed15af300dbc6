//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 40 * time.Second // postbridge itself gives its stop 25 seconds
	askTimeout   = 5 * time.Second  // for one look at its status
	askInterval  = 20 * time.Millisecond

	// nobody is where no bus is: port 1 is not given out to programs that ask for a free one.
	nobody = "nats://127.0.0.1:1"
)

// server is one process under load.
type server struct {
	ingest netip.AddrPort
	cmd    *exec.Cmd
	log    string // path of what it says on stderr

	// Of postbridge only.
	admin string // host:port
	nats  string // URL of its bus; nobody's if it is to have none
	data  string // its directory
}

// command makes the command of the process. stop ends it, also when ctx is over: in order, with one signal. If this
// process is killed, the other is too.
func (s *server) command(ctx context.Context, env []string, name string, args ...string) error {
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), name, args...)
	s.cmd.Env = env
	s.cmd.Stderr = log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return nil
}

// stop ends the process in order, by force if that takes too long, and removes its data.
func (s *server) stop() error {
	force := time.AfterFunc(stopTimeout, func() { _ = s.cmd.Process.Kill() })
	defer force.Stop()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it has ended already, or Wait tells
	err := s.cmd.Wait()
	if err != nil {
		err = fmt.Errorf("%w; it said at the end:\n%s", err, s.said())
	}
	if s.data != "" {
		err = errors.Join(err, os.RemoveAll(s.data))
	}
	return err
}

// said is the end of what the process said.
func (s *server) said() []byte {
	text, _ := os.ReadFile(s.log)
	return text[max(0, len(text)-2000):]
}

// cpu is the processor time the process has used so far.
func (s *server) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The fields after the name, which is in parentheses, begin with the third.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.ParseInt(fields[14-3], 10, 64)
	system, err2 := strconv.ParseInt(fields[15-3], 10, 64)
	const tick = 10 * time.Millisecond // Linux shows a hundredth of a second on every architecture
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// serveBare is the whole of the server that postbridge is compared with.
func serveBare(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	err = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// startBare starts serveBare in a process of its own.
func startBare(ctx context.Context, dir string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{log: filepath.Join(dir, "bare.log")}
	if err := s.command(ctx, os.Environ(), self, bareArgument); err != nil {
		return nil, err
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	late := time.AfterFunc(startTimeout, func() { _ = s.cmd.Process.Kill() })
	defer late.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		s.ingest, err = netip.ParseAddrPort(strings.TrimSpace(line))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the bare server did not start: %w", err), s.stop())
	}
	return s, nil
}

// startPostbridge starts the real binary on a new directory and waits until it takes postbacks, and reaches its bus if
// it is to have one.
func startPostbridge(ctx context.Context, binary, dir string, withBus bool) (_ *server, err error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	s := &server{ingest: ports[0], admin: ports[1].String(), nats: nobody, log: filepath.Join(dir, "postbridge.log")}
	bus := "POSTBRIDGE_NATS_URL=" + nobody
	if withBus {
		s.nats = "nats://" + ports[2].String()
		bus = "POSTBRIDGE_NATS_LISTEN=" + ports[2].String()
	}
	if s.data, err = os.MkdirTemp(dir, "data-"); err != nil {
		return nil, err
	}
	env := append(environWithoutPostbridge(), bus,
		"POSTBRIDGE_LISTEN="+s.ingest.String(),
		"POSTBRIDGE_ADMIN_LISTEN="+s.admin,
		"POSTBRIDGE_DATA_DIR="+s.data,
		"POSTBRIDGE_KITE_SECRETS="+appID+"="+appSecret)
	if err := s.command(ctx, env, binary, "serve"); err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("postbridge did not get ready: %w; it said:\n%s", err, s.said()), s.stop())
	}
	return s, nil
}

// environWithoutPostbridge is our environment without settings of a postbridge that it may be meant for.
func environWithoutPostbridge() (env []string) {
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "POSTBRIDGE_") {
			env = append(env, e)
		}
	}
	return env
}

// freePorts finds ports of the loopback that were free a moment ago.
func freePorts(n int) (ports []netip.AddrPort, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:errcheck // held until all are found, so that they differ
		ports = append(ports, netip.MustParseAddrPort(l.Addr().String()))
	}
	return ports, nil
}

// hasBus reports whether this postbridge is to publish.
func (s *server) hasBus() bool { return s.nats != nobody }

func (s *server) awaitReady(ctx context.Context) error {
	return poll(ctx, startTimeout, func() (bool, error) {
		st, err := s.status(ctx)
		if err != nil {
			return false, err
		}
		if !st.Ready || !s.hasBus() {
			return st.Ready, nil
		}
		_, err = s.inJetStream(ctx)
		return err == nil, err
	})
}

// poll asks until the answer is yes; an error is a no. Its own error says the last one.
func poll(ctx context.Context, limit time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(askInterval)
	defer tick.Stop()
	for {
		yes, err := ask()
		if yes {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("gave up: %w", context.Cause(ctx)), err)
		case <-tick.C:
		}
	}
}

// status is what matters here of the admin's /status.
type status struct {
	Ready     bool `json:"ready"`
	Postbacks map[string]struct {
		Accepted uint64 `json:"accepted"`
		Received uint64 `json:"received"`
	} `json:"postbacks"`
	Buses map[string]struct {
		Up      bool   `json:"up"`
		Waiting uint64 `json:"waiting"`
		Stored  uint64 `json:"stored"`
	} `json:"buses"`
}

func (s *server) status(ctx context.Context) (*status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+"/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	st := new(status)
	return st, json.NewDecoder(resp.Body).Decode(st)
}

// inJetStream is how many events the stream itself says that it has stored. It began empty.
func (s *server) inJetStream(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := nats.Connect(s.nats, nats.Timeout(askTimeout))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return 0, err
	}
	stream, err := js.Stream(ctx, "ORDERS")
	if err != nil {
		return 0, err
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// backlog is what was accepted and not yet stored when the load ended, and how long storing it took.
type backlog struct {
	accepted, waiting uint64
	took              time.Duration
}

// check holds postbridge to its word: what it answered is what it accepted, and all of that is stored, at the latest
// after the limit, or none if there is no bus.
func (s *server) check(ctx context.Context, answered uint64, limit time.Duration) (*backlog, error) {
	from := time.Now()
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	kite, bus := st.Postbacks["kite"], st.Buses["nats"]
	if kite.Accepted != answered || kite.Received != answered {
		return nil, fmt.Errorf("%d postbacks were answered 200, postbridge counts %d accepted of %d received",
			answered, kite.Accepted, kite.Received)
	}
	if !s.hasBus() {
		if bus.Up || bus.Stored > 0 || bus.Waiting != answered {
			return nil, fmt.Errorf("without a bus, %d events are stored and %d of %d wait", bus.Stored, bus.Waiting, answered)
		}
		return nil, nil
	}
	b := &backlog{accepted: answered, waiting: bus.Waiting}
	err = poll(ctx, limit, func() (bool, error) {
		st, err := s.status(ctx)
		if err != nil {
			return false, err
		}
		bus = st.Buses["nats"]
		return bus.Waiting == 0, fmt.Errorf("%d events still wait for JetStream", bus.Waiting)
	})
	if err != nil {
		return nil, err
	}
	b.took = time.Since(from)
	held, err := s.inJetStream(ctx)
	if err == nil && (bus.Stored != answered || held != answered) {
		err = fmt.Errorf("of %d accepted events postbridge counts %d stored, JetStream %d", answered, bus.Stored, held)
	}
	return b, err
}
