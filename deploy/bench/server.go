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
	"slices"
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
	log    string // path of its stderr
	bus    *bus   // it publishes to; nil for none

	admin string // host:port; of postbridge only
}

// command makes the command of the process. stop ends it, also when ctx is over. If this process is killed, it is, too.
func (s *server) command(ctx context.Context, env []string, name string, args ...string) error {
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), name, args...)
	s.cmd.Env = env
	s.cmd.Stderr = log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return nil
}

// stop ends the process with SIGTERM, and by force after stopTimeout.
func (s *server) stop() error {
	if s.cmd.Process == nil {
		return nil
	}
	force := time.AfterFunc(stopTimeout, func() { _ = s.cmd.Process.Kill() })
	defer force.Stop()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // if it has ended already, Wait returns why
	err := s.cmd.Wait()
	if status, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() &&
		status.Signal() == syscall.SIGTERM {
		err = nil // it does not handle the signal
	}
	if err != nil {
		err = fmt.Errorf("%w; the end of its log:\n%s", err, s.logTail())
	}
	return err
}

// logTail returns the last 2,000 bytes of the log.
func (s *server) logTail() []byte {
	text, _ := os.ReadFile(s.log)
	return text[max(0, len(text)-2000):]
}

// cpu returns the processor time that the process has used so far.
func (s *server) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The fields after the name, which is in parentheses, begin with the third.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.ParseInt(fields[14-3], 10, 64)
	system, err2 := strconv.ParseInt(fields[15-3], 10, 64)
	const tick = 10 * time.Millisecond // Linux counts in hundredths of a second on every architecture
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// resident returns the memory of the process, in MiB.
func (s *server) resident() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	line, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.Atoi(strings.TrimSpace(line))
	return float64(kib) / 1024, err
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

// startSelf starts this program as a server, which prints its address to stdout.
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

// startReady starts postbridge and waits until it is ready and, unless the bus is down, has created its streams.
func startReady(ctx context.Context, binary, data string, to *bus) (*server, error) {
	s, err := startPostbridge(ctx, binary, data, to)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, startTimeout, func() (bool, error) {
		st, err := s.status(ctx)
		if err == nil && st.Ready && to.held != nil {
			_, err = to.held(ctx)
		}
		return err == nil && st.Ready, err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("postbridge is not ready: %w; the end of its log:\n%s", err, s.logTail()),
			s.stop())
	}
	return s, nil
}

// environWithoutPostbridge returns our environment without settings of postbridge.
func environWithoutPostbridge() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "POSTBRIDGE_") })
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

// poll asks until the answer is yes; an error is a no. Its own error wraps the last one.
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

// status is the part of /status that matters here.
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

// check holds postbridge to its promise: it accepted what it answered 200, and all of that is stored within the limit,
// or in the spool if there is no bus. It returns the percentage that was unpublished at first.
func (s *server) check(ctx context.Context, answered uint64, limit time.Duration) (backlog float64, err error) {
	st, err := s.status(ctx)
	if err != nil {
		return 0, err
	}
	kite, bus := st.Postbacks["kite"], st.Buses[s.bus.name]
	if kite.Accepted != answered || kite.Received != answered {
		return 0, fmt.Errorf("%d postbacks were answered 200, postbridge counts %d accepted of %d received",
			answered, kite.Accepted, kite.Received)
	}
	if s.bus.held == nil {
		if bus.Up || bus.Stored > 0 || bus.Waiting != answered {
			return 0, fmt.Errorf("without a bus, %d events are stored and %d of %d unpublished", bus.Stored,
				bus.Waiting, answered)
		}
		return 0, nil
	}
	if err := s.awaitDrained(ctx, limit, nil); err != nil {
		return 0, err
	}
	return 100 * float64(bus.Waiting) / float64(answered), s.checkStored(ctx, answered)
}

// awaitDrained waits until no event is unpublished. observe, if not nil, gets each count of stored events.
func (s *server) awaitDrained(ctx context.Context, limit time.Duration, observe func(stored uint64)) error {
	return poll(ctx, limit, func() (bool, error) {
		st, err := s.status(ctx)
		if err != nil {
			return false, err
		}
		bus, ok := st.Buses[s.bus.name]
		if ok && observe != nil {
			observe(bus.Stored)
		}
		return ok && bus.Waiting == 0, fmt.Errorf("%d events are unpublished to %s", bus.Waiting, s.bus.name)
	})
}

// checkStored compares the number of events with what postbridge counts and with what the bus holds.
func (s *server) checkStored(ctx context.Context, events uint64) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	held, err := s.bus.held(ctx)
	if stored := st.Buses[s.bus.name].Stored; err == nil && (stored != events || held != events) {
		err = fmt.Errorf("of %d accepted events postbridge counts %d stored, %s holds %d", events, stored, s.bus.name,
			held)
	}
	return err
}
