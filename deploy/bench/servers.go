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
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 40 * time.Second // postbridge itself gives its stop 25 seconds
	askTimeout   = 5 * time.Second  // for one look at its status
	askInterval  = 10 * time.Millisecond
)

// server is one process under load.
type server struct {
	ingest netip.AddrPort
	cmd    *exec.Cmd
	log    string         // path of what it says on stderr
	after  []func() error // done once it has ended
	// check looks whether what it answered 200 is where it should be. nil if it should be nowhere.
	check func(ctx context.Context, answered uint64) (*backlog, error)

	// Of postbridge only.
	admin string // host:port
	bus   *bus
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

// stop ends the process in order, by force if that takes too long, and does what is to be done then.
func (s *server) stop() (err error) {
	if s.cmd != nil && s.cmd.Process != nil {
		err = s.end()
	}
	for _, f := range s.after {
		err = errors.Join(err, f())
	}
	return err
}

func (s *server) end() error {
	force := time.AfterFunc(stopTimeout, func() { _ = s.cmd.Process.Kill() })
	defer force.Stop()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it has ended already, or Wait tells
	err := s.cmd.Wait()
	if status, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
		err = nil // it does not handle the signal
	}
	if err != nil {
		err = fmt.Errorf("%w; it said at the end:\n%s", err, s.said())
	}
	return err
}

// said is the end of what the process said.
func (s *server) said() []byte {
	text, _ := os.ReadFile(s.log)
	return text[max(0, len(text)-2000):]
}

// cpu is the processor time that the process has used so far, and those that it started.
func (s *server) cpu() (total time.Duration, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	group := strconv.Itoa(s.cmd.Process.Pid)
	for _, file := range files {
		stat, _ := os.ReadFile(file) // it may have ended since
		// The fields after the name, which is in parentheses, begin with the third.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 13 || fields[5-3] != group {
			continue
		}
		user, err1 := strconv.ParseInt(fields[14-3], 10, 64)
		system, err2 := strconv.ParseInt(fields[15-3], 10, 64)
		const tick = 10 * time.Millisecond // Linux shows a hundredth of a second on every architecture
		total += time.Duration(user+system) * tick
		err = errors.Join(err, err1, err2)
	}
	return total, err
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
	return startSelf(ctx, dir, bareArgument)
}

// startSelf starts this program as a server, which says on its stdout where it listens.
func startSelf(ctx context.Context, dir string, args ...string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{log: filepath.Join(dir, args[0]+".log")}
	if err := s.command(ctx, os.Environ(), self, args...); err != nil {
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
		return nil, errors.Join(fmt.Errorf("%s did not start: %w", args[0], err), s.stop())
	}
	return s, nil
}

// startPostbridge starts the real binary on a data directory, publishing to the bus.
func startPostbridge(ctx context.Context, binary, data string, to *bus) (*server, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	s := &server{ingest: ports[0], admin: ports[1].String(), bus: to, log: data + ".log"}
	env := append(environWithoutPostbridge(),
		"POSTBRIDGE_LISTEN="+s.ingest.String(),
		"POSTBRIDGE_ADMIN_LISTEN="+s.admin,
		"POSTBRIDGE_DATA_DIR="+data,
		"POSTBRIDGE_PUBLISH="+to.name,
		"POSTBRIDGE_KITE_SECRETS="+appID+"="+appSecret)
	if err := s.command(ctx, append(env, to.env...), binary, "serve"); err != nil {
		return nil, err
	}
	return s, s.cmd.Start()
}

// startReady starts postbridge and waits until it takes postbacks, and reaches its bus if it is to have one.
func startReady(ctx context.Context, binary, data string, to *bus) (*server, error) {
	s, err := startPostbridge(ctx, binary, data, to)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, startTimeout, func() (bool, error) {
		st, err := s.status(ctx)
		if err != nil || !st.Ready || to.held == nil {
			return err == nil && st.Ready, err
		}
		_, err = to.held(ctx)
		return err == nil, err
	})
	if err != nil {
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

// backlog is what was accepted and not yet stored when the load ended, and how long storing it took.
type backlog struct {
	accepted, waiting uint64
	took              time.Duration
}

// checkWord holds postbridge to its word: what it answered is what it accepted, and all of that is stored, at the latest
// after the limit, or none if there is no bus.
func (s *server) checkWord(ctx context.Context, answered uint64, limit time.Duration) (*backlog, error) {
	from := time.Now()
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	kite, bus := st.Postbacks["kite"], st.Buses[s.bus.name]
	if kite.Accepted != answered || kite.Received != answered {
		return nil, fmt.Errorf("%d postbacks were answered 200, postbridge counts %d accepted of %d received",
			answered, kite.Accepted, kite.Received)
	}
	if s.bus.held == nil {
		if bus.Up || bus.Stored > 0 || bus.Waiting != answered {
			return nil, fmt.Errorf("without a bus, %d events are stored and %d of %d wait", bus.Stored, bus.Waiting, answered)
		}
		return nil, nil
	}
	b := &backlog{accepted: answered, waiting: bus.Waiting}
	if err := s.awaitDrained(ctx, limit, nil); err != nil {
		return nil, err
	}
	b.took = time.Since(from)
	return b, s.checkStored(ctx, answered)
}

// awaitDrained waits until no event waits any more. Each look at how many are stored is told.
func (s *server) awaitDrained(ctx context.Context, limit time.Duration, told func(stored uint64)) error {
	return poll(ctx, limit, func() (bool, error) {
		st, err := s.status(ctx)
		if err != nil {
			return false, err
		}
		bus, ok := st.Buses[s.bus.name]
		if ok && told != nil {
			told(bus.Stored)
		}
		return ok && bus.Waiting == 0, fmt.Errorf("%d events still wait for %s", bus.Waiting, s.bus.name)
	})
}

// checkStored holds that all events are stored, as postbridge counts and as the bus itself says.
func (s *server) checkStored(ctx context.Context, events uint64) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	held, err := s.bus.held(ctx)
	if stored := st.Buses[s.bus.name].Stored; err == nil && (stored != events || held != events) {
		err = fmt.Errorf("of %d accepted events postbridge counts %d stored, %s itself %d", events, stored, s.bus.name, held)
	}
	return err
}
