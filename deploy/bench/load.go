//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
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

// What the checksum covers: an order id, whose last digits are the number of the order, and the time of the order.
const (
	orderPrefix = "260105"
	orderDigits = 9
	userDigits  = 4 // the last digits of the number name the user
	orderTime   = "2026-01-05 09:24:25"
	sumDigits   = 2 * sha256.Size
)

// stallTimeout is how long nothing at all may be answered.
const stallTimeout = 10 * time.Second

// bodyTemplate has the shape of Kite's official sample. # stands for a digit of the order's number, @ for one of the
// user's, % for one of the checksum.
const bodyTemplate = `{"user_id":"AB@@@@","unfilled_quantity":0,"app_id":` + appID + `,` +
	`"checksum":"%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%","placed_by":"AB@@@@",` +
	`"order_id":"` + orderPrefix + `#########","exchange_order_id":"1100000#########","parent_order_id":null,` +
	`"status":"STATUS","status_message":null,"status_message_raw":null,"order_timestamp":"` + orderTime + `",` +
	`"exchange_update_timestamp":"2026-01-05 09:24:UPDATED","exchange_timestamp":"` + orderTime + `",` +
	`"variety":"regular","exchange":"NFO","tradingsymbol":"BANKNIFTY2660236800CE","instrument_token":12345602,"order_type":"LIMIT",` +
	`"transaction_type":"BUY","validity":"DAY","product":"NRML","quantity":100,"disclosed_quantity":0,"price":470.25,` +
	`"trigger_price":0,"average_price":AVERAGE,"filled_quantity":FILLED,"pending_quantity":PENDING,` +
	`"cancelled_quantity":0,"market_protection":0,"meta":{},"tag":"desk1-momentum-20d-7","guid":"28183Xbz8tOGnLmXrY"}`

// workload is what is posted: the lives of orders, every postback signed and none a repeat. All that costs time, the
// checksums, is prepared.
type workload struct {
	sums []byte       // sumDigits for each order
	next atomic.Int64 // the order to hand out next
}

// newWorkload prepares so many postbacks, rounded up to whole orders.
func newWorkload(postbacks int) *workload {
	states := len(orderLife(netip.AddrPort{}))
	orders := (postbacks + states - 1) / states
	w := &workload{sums: make([]byte, 0, orders*sumDigits)}
	for n := range orders {
		number := orderNumber(n)
		sum := sha256.Sum256([]byte(orderPrefix + string(number[:]) + orderTime + appSecret))
		w.sums = hex.AppendEncode(w.sums, sum[:])
	}
	return w
}

// restart makes the workload begin with its first order again: each server gets the same postbacks.
func (w *workload) restart() { w.next.Store(0) }

// take hands out an order, until none is left.
func (w *workload) take() (order int, ok bool) {
	order = int(w.next.Add(1)) - 1
	return order, order < w.orders()
}

func (w *workload) orders() int { return len(w.sums) / sumDigits }

// usedUp reports whether more was asked for than there is.
func (w *workload) usedUp() bool { return int(w.next.Load()) > w.orders() }

func (w *workload) sum(order int) []byte { return w.sums[order*sumDigits:][:sumDigits] }

func orderNumber(n int) (number [orderDigits]byte) {
	for i := orderDigits - 1; i >= 0; i-- {
		number[i] = byte('0' + n%10)
		n /= 10
	}
	return number
}

// request is one whole HTTP request, and where it names its order.
type request struct {
	text           []byte
	body           int // where the body begins
	numbers, users []int
	sum            int
}

// orderLife is the requests of an order's life, in the order in which they are sent.
func orderLife(to netip.AddrPort) []request {
	var life []request
	for _, s := range [][5]string{ // status, second of the update, average price, filled, pending
		{"PUT ORDER REQ RECEIVED", "25", "0", "0", "100"},
		{"OPEN", "26", "0", "0", "100"},
		{"UPDATE", "27", "470.25", "40", "60"},
		{"COMPLETE", "28", "470.25", "100", "0"},
	} {
		fill := strings.NewReplacer("STATUS", s[0], "UPDATED", s[1], "AVERAGE", s[2], "FILLED", s[3], "PENDING", s[4])
		life = append(life, newRequest(to, fill.Replace(bodyTemplate)))
	}
	return life
}

func newRequest(to netip.AddrPort, body string) request {
	head := "POST /kite HTTP/1.1\r\nHost: " + to.String() + "\r\nUser-Agent: bench\r\nContent-Type: application/json\r\n" +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	r := request{text: []byte(head + body), body: len(head)}
	r.numbers = spots(r.text, '#')
	r.users = spots(r.text, '@')
	r.sum = spots(r.text, '%')[0]
	return r
}

// spots is where runs of the mark begin.
func spots(text []byte, mark byte) (at []int) {
	for i, c := range text {
		if c == mark && text[i-1] != mark {
			at = append(at, i)
		}
	}
	return at
}

// address makes the request one of the given order.
func (r *request) address(number [orderDigits]byte, sum []byte) {
	for _, at := range r.numbers {
		copy(r.text[at:], number[:])
	}
	for _, at := range r.users {
		copy(r.text[at:], number[orderDigits-userDigits:])
	}
	copy(r.text[r.sum:], sum)
}

// plan is how to load a server.
type plan struct {
	connections, threads int
	warmup, duration     time.Duration
}

// result is what the load saw. The answers of the warm-up, and of those in flight at the end, are only in answered.
type result struct {
	answered  uint64
	latencies histogram
}

// run loads a server in a closed loop, as fast as it answers, until the duration is over or the workload is used up. Any
// answer but 200 is an error.
func (p *plan) run(ctx context.Context, to netip.AddrPort, w *workload) (*result, error) {
	w.restart()
	loops := make([]*loop, p.threads)
	for i := range loops {
		l, err := newLoop(to, w, (p.connections+i)/p.threads)
		if err != nil {
			return nil, err
		}
		defer l.close()
		loops[i] = l
	}
	start := time.Now()
	errs := make([]error, len(loops))
	var running sync.WaitGroup
	for i, l := range loops {
		running.Go(func() { errs[i] = l.run(ctx, start, p.warmup, p.warmup+p.duration) })
	}
	running.Wait()
	total := new(result)
	for _, l := range loops {
		total.answered += l.answered
		total.latencies.add(&l.latencies)
	}
	return total, errors.Join(errs...)
}

// loop keeps some connections busy from one goroutine. It asks the kernel itself which of them have an answer: a
// goroutine for each costs a fifth more processor time, which the server on the same cores then lacks.
type loop struct {
	to       netip.AddrPort
	workload *workload
	life     []request
	epoll    int
	conns    []*conn
	busy     int // connections that wait for an answer
	result
}

// conn is one keep-alive connection; of a server that closes after each answer, one after the other.
type conn struct {
	index  int // in loop.conns
	fd     int // -1 if it is closed
	order  int
	state  int // the next in the order's life
	sent   time.Duration
	answer [1024]byte
	got    int // bytes of the answer
}

func newLoop(to netip.AddrPort, w *workload, connections int) (_ *loop, err error) {
	l := &loop{to: to, workload: w, life: orderLife(to)}
	if l.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	for i := range connections {
		c := &conn{index: i, fd: -1}
		l.conns = append(l.conns, c)
		if err := l.connect(c); err != nil {
			l.close()
			return nil, fmt.Errorf("cannot connect to %s: %w", to, err)
		}
	}
	return l, nil
}

func (l *loop) connect(c *conn) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.fd = fd
	// The event carries the connection's index where it usually has its descriptor.
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(c.index)}
	return errors.Join(
		syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(l.to.Port()), Addr: l.to.Addr().As4()}),
		syscall.SetNonblock(fd, true),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1),
		syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd, &event),
	)
}

func (l *loop) close() {
	for _, c := range l.conns {
		if c.fd < 0 {
			continue
		}
		_ = syscall.Close(c.fd) // all that was sent was answered, or the run has failed
	}
	_ = syscall.Close(l.epoll)
}

// run posts until end and then waits for the answers still missing; it measures from warm on. Times are since start.
func (l *loop) run(ctx context.Context, start time.Time, warm, end time.Duration) error {
	for _, c := range l.conns {
		if err := l.send(c, time.Since(start)); err != nil {
			return err
		}
	}
	events := make([]syscall.EpollEvent, len(l.conns))
	for last := start; l.busy > 0; {
		n, err := syscall.EpollWait(l.epoll, events, 100)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, syscall.EINTR): // the runtime signals its threads
			continue
		case err != nil:
			return fmt.Errorf("epoll: %w", err)
		case n > 0:
			last = time.Now()
		case time.Since(last) > stallTimeout:
			return fmt.Errorf("no answer for %s", stallTimeout)
		}
		for _, event := range events[:n] {
			if err := l.turn(l.conns[event.Fd], start, warm, end); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn reads an answer and posts again.
func (l *loop) turn(c *conn, start time.Time, warm, end time.Duration) error {
	whole, err := c.receive()
	if !whole || err != nil {
		return err
	}
	now := time.Since(start)
	l.busy--
	l.answered++
	if now >= end {
		return nil
	}
	if now >= warm {
		l.latencies.record(now - c.sent)
	}
	return l.send(c, now)
}

// send posts the next state of the connection's order, or the first of a new one; without one the connection rests. What
// it takes to address the request counts as the server's time.
func (l *loop) send(c *conn, now time.Duration) error {
	if c.state == len(l.life) {
		c.state = 0
	}
	if c.state == 0 {
		var ok bool
		if c.order, ok = l.workload.take(); !ok {
			return nil
		}
	}
	r := &l.life[c.state]
	r.address(orderNumber(c.order), l.workload.sum(c.order))
	c.state++
	c.sent, c.got = now, 0
	l.busy++
	if c.fd < 0 {
		if err := l.connect(c); err != nil {
			return fmt.Errorf("cannot connect again: %w", err)
		}
	}
	n, err := syscall.Write(c.fd, r.text)
	switch {
	case err != nil:
		return fmt.Errorf("cannot send: %w", err)
	case n < len(r.text): // an idle socket has room for a whole request
		return fmt.Errorf("only %d of %d bytes could be sent", n, len(r.text))
	}
	return nil
}

// receive reads what there is of an answer, and reports whether it is whole.
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
	whole, err = checkAnswer(c.answer[:c.got])
	if whole && bytes.Contains(c.answer[:c.got], []byte("\r\nConnection: close\r\n")) {
		err = syscall.Close(c.fd)
		c.fd = -1
	}
	return whole, err
}

// checkAnswer reports whether the answer is whole. It reads no more of it than tells a 200 from all else and one answer
// from the next.
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

// histogram counts durations in buckets that are at most 1/64 wide; recording allocates nothing.
type histogram struct {
	counts [40 * 64]uint64
	total  uint64
}

func (h *histogram) record(d time.Duration) {
	h.total++
	v := uint64(d)
	if v < 64 {
		h.counts[v]++
		return
	}
	shift := min(bits.Len64(v)-7, 38)
	h.counts[shift*64+int(v>>shift)]++
}

func (h *histogram) add(other *histogram) {
	h.total += other.total
	for i, n := range other.counts {
		h.counts[i] += n
	}
}

// quantile is the upper end of the bucket that the quantile falls into.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.total))
	for i, n := range h.counts {
		if n > rank {
			shift := max(i/64-1, 0)
			return time.Duration((i-shift*64+1)<<shift - 1)
		}
		rank -= n
	}
	return 0
}
