//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The Kite app that signs the postbacks.
const (
	appID     = "1234"
	appSecret = "0hdv7iw5examplesecret"
)

// The checksum covers the order id, which ends in the number of the order, and the time of the order.
const (
	orderPrefix = "260105"
	orderTime   = "2026-01-05 09:24:25"
)

// stallTimeout bounds how long no postback at all is answered.
const stallTimeout = 10 * time.Second

// bodyTemplate has the shape of Kite's official sample. # stands for a digit of the order's number, @ for one of its
// last four, which name the user, and % for one of the checksum.
const bodyTemplate = `{"user_id":"AB@@@@","unfilled_quantity":0,"app_id":` + appID + `,` +
	`"checksum":"%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%","placed_by":"AB@@@@",` +
	`"order_id":"` + orderPrefix + `#########","exchange_order_id":"1100000#########","parent_order_id":null,` +
	`"status":"STATUS","status_message":null,"status_message_raw":null,"order_timestamp":"` + orderTime + `",` +
	`"exchange_update_timestamp":"2026-01-05 09:24:UPDATED","exchange_timestamp":"` + orderTime + `",` +
	`"variety":"regular","exchange":"NFO","tradingsymbol":"BANKNIFTY2660236800CE","instrument_token":12345602,` +
	`"order_type":"LIMIT","transaction_type":"BUY","validity":"DAY","product":"NRML","quantity":100,` +
	`"disclosed_quantity":0,"price":470.25,"trigger_price":0,"average_price":AVERAGE,"filled_quantity":FILLED,` +
	`"pending_quantity":PENDING,"cancelled_quantity":0,"market_protection":0,"meta":{},` +
	`"tag":"desk1-momentum-20d-7","guid":"28183Xbz8tOGnLmXrY"}`

// workload issues the numbers of the orders to send, each once.
type workload struct {
	next  atomic.Int64
	limit int64 // 0 for none
}

// take returns the number of the next order, until none is left.
func (w *workload) take() (order int64, ok bool) {
	order = w.next.Add(1) - 1
	return order, w.limit == 0 || order < w.limit
}

// request is one whole HTTP request, with the offsets at which it names its order.
type request struct {
	text           []byte
	body           int // where the body begins
	numbers, users []int
	sum            int
}

// orderLife returns the requests of an order's life, in order.
func orderLife(to netip.AddrPort) (life []request) {
	for _, s := range [][5]string{ // status, second of the update, average price, filled, pending
		{"PUT ORDER REQ RECEIVED", "25", "0", "0", "100"},
		{"OPEN", "26", "0", "0", "100"},
		{"UPDATE", "27", "470.25", "40", "60"},
		{"COMPLETE", "28", "470.25", "100", "0"},
	} {
		fill := strings.NewReplacer("STATUS", s[0], "UPDATED", s[1], "AVERAGE", s[2], "FILLED", s[3], "PENDING", s[4])
		body := fill.Replace(bodyTemplate)
		head := fmt.Sprintf("POST /kite HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", to, len(body))
		text := []byte(head + body)
		life = append(life, request{
			text: text, body: len(head),
			numbers: runs(text, '#'), users: runs(text, '@'), sum: runs(text, '%')[0],
		})
	}
	return life
}

// runs returns the offsets of the runs of a character.
func runs(text []byte, mark byte) (at []int) {
	for i, c := range text {
		if c == mark && text[i-1] != mark {
			at = append(at, i)
		}
	}
	return at
}

// fill makes the request one of the given order.
func (r *request) fill(order int64) {
	number := fmt.Appendf(nil, "%09d", order)
	for _, at := range r.numbers {
		copy(r.text[at:], number)
	}
	for _, at := range r.users {
		copy(r.text[at:], number[len(number)-4:])
	}
	sum := sha256.Sum256([]byte(orderPrefix + string(number) + orderTime + appSecret))
	hex.Encode(r.text[r.sum:], sum[:])
}

// plan configures the load of a server.
type plan struct {
	connections, threads int
	warmup, duration     time.Duration
}

// result holds the counts and the latencies of a load.
type result struct {
	answered  uint64 // with 200, the warm-up included
	latencies times  // of the postbacks sent, or due, after the warm-up
}

// run loads a server until the duration is over or the workload is used up, and waits for the missing answers. At rate
// 0 it is a closed loop: each connection posts again once it is answered. Otherwise it is an open loop of so many
// postbacks a second: a late answer does not hold up the next postback, and time counts from when that was due. Any
// answer but 200 is an error.
func (p *plan) run(ctx context.Context, to netip.AddrPort, w *workload, rate int) (*result, error) {
	interval := time.Duration(0)
	if rate > 0 {
		interval = time.Second * time.Duration(p.threads) / time.Duration(rate)
	}
	loops := make([]*loop, p.threads)
	for i := range loops {
		l, err := newLoop(to, w, (p.connections+i)/p.threads)
		if err != nil {
			return nil, err
		}
		defer l.close()
		loops[i] = l
	}
	errs := make([]error, len(loops))
	var running sync.WaitGroup
	for i, l := range loops {
		running.Go(func() { errs[i] = l.run(ctx, interval, p.warmup, p.warmup+p.duration) })
	}
	running.Wait()
	total := new(result)
	for _, l := range loops {
		total.answered += l.answered
		total.latencies = append(total.latencies, l.latencies...)
	}
	return total, errors.Join(errs...)
}

// loop keeps some connections busy from one thread. It asks the kernel itself which of them have an answer: a
// goroutine for each costs a fifth more processor time, which the server on the same cores then lacks.
type loop struct {
	workload *workload
	life     []request
	epoll    int
	conns    []*conn
	idle     []*conn // longest idle first
	retired  int     // connections for which the workload has no order left
	result
}

// conn is one keep-alive connection.
type conn struct {
	fd     int
	order  int64
	state  int // the next in the order's life
	sent   time.Duration
	answer [1024]byte
	got    int // bytes of the answer
}

func newLoop(to netip.AddrPort, w *workload, connections int) (_ *loop, err error) {
	l := &loop{workload: w, life: orderLife(to)}
	if l.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	for range connections {
		if err := l.connect(to); err != nil {
			l.close()
			return nil, fmt.Errorf("cannot connect to %s: %w", to, err)
		}
	}
	l.idle = slices.Clone(l.conns)
	return l, nil
}

func (l *loop) connect(to netip.AddrPort) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// The event carries the connection's index where it usually has its descriptor.
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(len(l.conns))}
	l.conns = append(l.conns, &conn{fd: fd})
	return errors.Join(
		syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
		syscall.SetNonblock(fd, true),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1),
		syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd, &event),
	)
}

func (l *loop) close() {
	for _, c := range l.conns {
		_ = syscall.Close(c.fd) // all that was sent was answered, or the run has failed
	}
	_ = syscall.Close(l.epoll)
}

// run posts until end; postbacks from warm on are measured. Times are since the start.
func (l *loop) run(ctx context.Context, interval, warm, end time.Duration) error {
	if err := exactTimer(); err != nil {
		return err
	}
	defer runtime.UnlockOSThread()
	events := make([]syscall.EpollEvent, len(l.conns))
	start := time.Now()
	for due, last := time.Duration(0), start; ; {
		now := time.Since(start)
		for ; len(l.idle) > 0 && due <= now && now < end; due += interval {
			if err := l.send(cmp.Or(due, now)); err != nil {
				return err
			}
		}
		if busy := len(l.conns) - len(l.idle) - l.retired; busy == 0 && (now >= end || len(l.idle) == 0) {
			return nil
		}
		wait := 100 * time.Millisecond
		if interval > 0 && len(l.idle) > 0 && due < end {
			wait = due - now
		}
		n, err := l.wait(events, wait)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case n > 0:
			last = time.Now()
		case time.Since(last) > stallTimeout:
			return fmt.Errorf("no answer for %s", stallTimeout)
		}
		for _, event := range events[:n] {
			c := l.conns[event.Fd]
			whole, err := c.receive()
			if err != nil {
				return err
			}
			if !whole {
				continue
			}
			l.answered++
			if c.sent >= warm {
				l.latencies = append(l.latencies, time.Since(start)-c.sent)
			}
			l.idle = append(l.idle, c)
		}
	}
}

// exactTimer locks the goroutine to its thread and has the kernel wake that to the microsecond.
func exactTimer() error {
	runtime.LockOSThread()
	const timerSlack = 29 // PR_SET_TIMERSLACK, in ns
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, timerSlack, 1, 0); errno != 0 {
		return fmt.Errorf("prctl(PR_SET_TIMERSLACK): %w", errno)
	}
	return nil
}

// wait waits for answers. The millisecond of epoll is longer than most of them take, so short waits use select.
func (l *loop) wait(events []syscall.EpollEvent, wait time.Duration) (n int, err error) {
	if wait < 100*time.Millisecond {
		var set syscall.FdSet
		set.Bits[l.epoll/64] |= 1 << (l.epoll % 64)
		timeout := syscall.NsecToTimeval(max(wait.Nanoseconds(), 0))
		_, err = syscall.Select(l.epoll+1, &set, nil, nil, &timeout)
		wait = 0
	}
	if err == nil {
		n, err = syscall.EpollWait(l.epoll, events, int(wait.Milliseconds()))
	}
	if errors.Is(err, syscall.EINTR) { // the runtime signals its threads
		return 0, nil
	}
	return n, err
}

// send posts the next state of the order of the connection that is idle longest, or the first state of another order.
// The time to fill in the request counts as the server's.
func (l *loop) send(now time.Duration) error {
	c := l.idle[0]
	if c.state == len(l.life) {
		c.state = 0
	}
	l.idle = slices.Delete(l.idle, 0, 1)
	if c.state == 0 {
		var ok bool
		if c.order, ok = l.workload.take(); !ok {
			l.retired++
			return nil
		}
	}
	r := &l.life[c.state]
	r.fill(c.order)
	c.state++
	c.sent, c.got = now, 0
	n, err := syscall.Write(c.fd, r.text)
	switch {
	case err != nil:
		return fmt.Errorf("cannot send: %w", err)
	case n < len(r.text): // an idle socket has space for a whole request
		return fmt.Errorf("only %d of %d bytes could be sent", n, len(r.text))
	}
	return nil
}

// receive reads a part of an answer, and reports whether it is whole.
func (c *conn) receive() (whole bool, err error) {
	n, err := syscall.Read(c.fd, c.answer[c.got:])
	switch {
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("cannot read an answer: %w", err)
	case n == 0:
		return false, errors.New("the server closed a connection, or its answer is too long")
	}
	c.got += n
	return checkAnswer(c.answer[:c.got])
}

// checkAnswer reports whether the answer is whole. It parses only the status and the length. Any status but 200 is an
// error.
func checkAnswer(answer []byte) (whole bool, err error) {
	head, body, whole := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !whole {
		return false, nil
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("answered %q", answer)
	}
	_, rest, _ := bytes.Cut(head, []byte("\r\nContent-Length: "))
	length, digits := 0, 0
	for ; digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9'; digits++ {
		length = length*10 + int(rest[digits]-'0')
	}
	if digits == 0 || len(body) > length {
		return false, fmt.Errorf("not one answer of known length: %q", answer)
	}
	return len(body) == length, nil
}

// times are durations of one kind.
type times []time.Duration

// quantile sorts the times and returns one; 0 for none.
func (t times) quantile(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	slices.Sort(t)
	return t[min(int(q*float64(len(t))), len(t)-1)]
}
