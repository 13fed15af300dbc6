package bridge_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// limited runs a bridge that has so many connections open at once.
func limited(t *testing.T, limit int) (*running, *fakeBus) {
	t.Helper()
	log, bus := new(logBuffer), newFakeBus(t)
	o := testOptions(t, log)
	o.MaxConnections, o.Buses = limit, []bridge.Bus{bus.bus()}
	return start(t, o, log), bus
}

func dial(t *testing.T, base string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// postOn posts on a connection and returns the status; 0 if there is no answer.
func postOn(conn net.Conn, body string) int {
	fmt.Fprintf(conn, "POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// isClosed waits until the other side closes a connection.
func isClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n > 0 || os.IsTimeout(err) {
		t.Errorf("it is still open: %d, %v", n, err)
	}
}

// TestConnectionLimit holds all connections open, as slow senders do, and posts all the same.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	const limit = 8
	r, _ := limited(t, limit)
	broker := dial(t, r.ingest)
	if status := postOn(broker, kiteBody("1", "OPEN", 1)); status != 200 {
		t.Fatalf("answered %d", status)
	}
	var silent []net.Conn
	for i := range 4 * limit {
		conn := dial(t, r.ingest)
		silent = append(silent, conn)
		switch i % 3 { // the rest says nothing at all
		case 1:
			_, _ = io.WriteString(conn, "POST /kite HTTP/1.1\r\nHost:")
		case 2:
			_, _ = io.WriteString(conn, "POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
		}
	}
	if status := postOn(dial(t, r.ingest), kiteBody("2", "OPEN", 1)); status != 200 {
		t.Errorf("a new connection among %d silent ones: answered %d", len(silent), status)
	}
	// Who has shown that it can prove something is not among those that made room, however long it was idle.
	if status := postOn(broker, kiteBody("3", "OPEN", 1)); status != 200 {
		t.Errorf("the broker's connection: answered %d", status)
	}
	for _, conn := range silent[:2*limit] {
		isClosed(t, conn)
	}
	_, metrics := r.get("/metrics")
	for _, want := range []string{`postbridge_connections [1-8]$`, `postbridge_connections_limit 8`, `postbridge_connections_closed_total [1-9]`} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(metrics) {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	if n := strings.Count(r.log.String(), "the limit of connections is reached"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// TestAdminConnectionLimit holds the admin listener's connections open: it answers all the same, and the log says which
// listener that is.
func TestAdminConnectionLimit(t *testing.T) {
	t.Parallel()
	r, _ := limited(t, 16)
	for range 100 {
		dial(t, r.admin)
	}
	_, metrics := r.get("/metrics")
	if !strings.Contains(metrics, "postbridge_connections_closed_total 0\n") {
		t.Error("connections of the admin listener are counted as brokers'")
	}
	if !hasLine(r.log.String(), "the limit of connections is reached", "at=POSTBRIDGE_ADMIN_LISTEN", "limit=64") {
		t.Errorf("not said in\n%s", r.log)
	}
}

// TestConnectionLimitOfRefused has strangers who keep asking: what is refused makes their connections no younger than
// that of a broker who has just connected, and has not said anything yet.
func TestConnectionLimitOfRefused(t *testing.T) {
	t.Parallel()
	const limit = 4
	r, _ := limited(t, limit)
	strangers := make([]net.Conn, limit)
	for i := range strangers {
		strangers[i] = dial(t, r.ingest)
		if status := postOn(strangers[i], "{}"); status != 403 {
			t.Fatalf("answered %d", status)
		}
	}
	broker := dial(t, r.ingest)
	isClosed(t, strangers[0])
	for _, conn := range strangers[1:] {
		if status := postOn(conn, "{}"); status != 403 {
			t.Fatalf("answered %d", status)
		}
	}
	dial(t, r.ingest)
	isClosed(t, strangers[1])
	if status := postOn(broker, kiteBody("1", "OPEN", 1)); status != 200 {
		t.Errorf("answered %d", status)
	}
}

// TestConnectionLimitOfKnown has only connections that brought something; the longest idle makes room.
func TestConnectionLimitOfKnown(t *testing.T) {
	t.Parallel()
	const limit = 4
	r, _ := limited(t, limit)
	var all []net.Conn
	for i := range limit {
		conn := dial(t, r.ingest)
		all = append(all, conn)
		if status := postOn(conn, kiteBody(fmt.Sprint(i), "OPEN", 1)); status != 200 {
			t.Fatalf("answered %d", status)
		}
	}
	if status := postOn(all[0], kiteBody("again", "OPEN", 1)); status != 200 {
		t.Fatalf("answered %d", status)
	}
	if status := postOn(dial(t, r.ingest), kiteBody("new", "OPEN", 1)); status != 200 {
		t.Errorf("the new one: answered %d", status)
	}
	isClosed(t, all[1])
	if status := postOn(all[0], kiteBody("once more", "OPEN", 1)); status != 200 {
		t.Errorf("the one used last: answered %d", status)
	}
}

// TestIdleTimeout closes a connection that had a postback and is idle for longer than it may.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	o := testOptions(t, log)
	o.IdleTimeout, o.Buses = 10*time.Millisecond, []bridge.Bus{newFakeBus(t).bus()}
	r := start(t, o, log)
	conn := dial(t, r.ingest)
	if status := postOn(conn, kiteBody("1", "OPEN", 1)); status != 200 {
		t.Fatalf("answered %d", status)
	}
	isClosed(t, conn)
}

// runOnHeldDisk runs a bridge whose disk syncs nothing until disk.syncs is unlocked. It returns the ingest address.
func runOnHeldDisk(t *testing.T, o bridge.Options, log *logBuffer) (b *bridge.Bridge, disk *heldDisk, ingest string) {
	t.Helper()
	osDisk, err := spool.OSDir(filepath.Join(o.DataDir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	disk = &heldDisk{FS: osDisk}
	ctx, cancel := context.WithCancel(t.Context())
	b = bridge.OnDisk(o, disk).WithoutLameDuck()
	_ = run(ctx, t, cancel, b, log)
	ingest = log.waitFor(t, readyLine)[1]
	disk.syncs.Lock()
	return b, disk, ingest
}

// TestConnectionLimitWhileKeeping has a slow disk: connections whose postbacks are being kept stay, and a new one waits
// for one of them.
func TestConnectionLimitWhileKeeping(t *testing.T) {
	t.Parallel()
	const limit = 4
	log := new(logBuffer)
	o := testOptions(t, log)
	o.MaxConnections, o.Buses = limit, []bridge.Bus{newFakeBus(t).bus()}
	b, disk, ingest := runOnHeldDisk(t, o, log)
	answers := make(chan int, limit+1)
	for i := range limit {
		conn := dial(t, ingest)
		go func() { answers <- postOn(conn, kiteBody(fmt.Sprint(i), "OPEN", 1)) }()
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if b.Working() == limit {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for the postbacks")
		}
	}
	late := dial(t, ingest)
	go func() { answers <- postOn(late, kiteBody("late", "OPEN", 1)) }()
	for range 200 { // looks, in all of which the disk has nothing yet and those who wait for it keep their connections
		select {
		case status := <-answers:
			t.Fatalf("answered %d before the disk has it", status)
		case <-time.After(time.Millisecond):
		}
		if n := b.Working(); n != limit {
			t.Fatalf("%d connections wait for the disk, want %d", n, limit)
		}
	}
	disk.syncs.Unlock()
	for range limit + 1 {
		if status := <-answers; status != 200 {
			t.Errorf("answered %d", status)
		}
	}
}

// TestClientsWhileKeeping has a slow disk: a client that disconnects meanwhile loses nothing, and one that sends two
// postbacks at once gets two answers.
func TestClientsWhileKeeping(t *testing.T) {
	t.Parallel()
	log, bus := new(logBuffer), newFakeBus(t)
	o := testOptions(t, log)
	o.Buses = []bridge.Bus{bus.bus()}
	b, disk, ingest := runOnHeldDisk(t, o, log)
	gone, eager := dial(t, ingest), dial(t, ingest)
	post := func(order string) string {
		body := kiteBody(order, "OPEN", 1)
		return fmt.Sprintf("POST /kite HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	_, _ = io.WriteString(gone, post("1"))
	_, _ = io.WriteString(eager, post("2")+post("3"))
	for deadline := time.Now().Add(20 * time.Second); b.Working() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for the postbacks")
		}
	}
	_ = gone.Close()
	disk.syncs.Unlock()
	answers := bufio.NewReader(eager)
	for range 2 {
		resp, err := http.ReadResponse(answers, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("answered %v, %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	bus.waitStored(3)
}

// heldDisk syncs only while nobody has the lock.
type heldDisk struct {
	spool.FS
	syncs sync.Mutex
}

func (d *heldDisk) Create(name string) (spool.File, error) { return d.held(d.FS.Create(name)) }
func (d *heldDisk) Open(name string) (spool.File, error)   { return d.held(d.FS.Open(name)) }
func (d *heldDisk) held(f spool.File, err error) (spool.File, error) {
	return &heldFile{f, d}, err
}

type heldFile struct {
	spool.File
	disk *heldDisk
}

func (f *heldFile) Sync() error {
	f.disk.syncs.Lock()
	defer f.disk.syncs.Unlock()
	return f.File.Sync()
}

// BenchmarkAtLimit is what a connection costs that displaces another.
func BenchmarkAtLimit(b *testing.B) {
	for _, limit := range []int{1 << 10, 8 << 10, 32 << 10} {
		b.Run(fmt.Sprint(limit), func(b *testing.B) {
			a := bridge.NewAtLimit(limit)
			for b.Loop() {
				if !a.Admit() {
					b.Fatal("none was displaced")
				}
			}
		})
	}
}
