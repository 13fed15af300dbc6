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
	stopTimeout  = 40 * time.Second // postbridge stops within 25 seconds
	// statusTimeout limits one request for the state of postbridge or of a bus, which is polled every pollInterval.
	statusTimeout = 5 * time.Second
	pollInterval  = 10 * time.Millisecond
)

// server is one process under load.
type server struct {
	ingest netip.AddrPort
	cmd    *exec.Cmd
	log    string             // path of its stderr
	signal context.CancelFunc // sends SIGTERM

	// Of postbridge only:
	admin string // host:port
	bus   *bus   // the bus to publish to
}

// command sets the command of the process. It runs until stop, even after ctx has ended, or until this process is
// killed.
func (s *server) command(ctx context.Context, env []string, name string, args ...string) error {
	log, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, s.signal = context.WithCancel(context.WithoutCancel(ctx))
	s.cmd = exec.CommandContext(ctx, name, args...)
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = stopTimeout
	s.cmd.Env = env
	s.cmd.Stderr = log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return nil
}

// stop ends the process with SIGTERM, and by force after stopTimeout.
func (s *server) stop() error {
	s.signal()
	if err := s.cmd.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w; the end of its log:\n%s", err, s.logTail())
	}
	return nil
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

// serveBare runs the server that postbridge is compared with.
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
		if err == nil && st.Ready && to.stored != nil {
			_, err = to.stored(ctx)
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

// poll calls check until it returns true; its error wraps the last one of check.
func poll(ctx context.Context, limit time.Duration, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		done, err := check()
		if done {
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
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
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

// check checks that postbridge has accepted every postback that it answered 200, and that all of them are stored on the
// bus within the limit, or spooled if there is no bus. It returns the percentage that was unpublished at first.
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
	if s.bus.stored == nil {
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
	onBus, err := s.bus.stored(ctx)
	if stored := st.Buses[s.bus.name].Stored; err == nil && (stored != events || onBus != events) {
		err = fmt.Errorf("of %d accepted events postbridge counts %d stored, %s has stored %d", events, stored,
			s.bus.name, onBus)
	}
	return err
}
