package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fetchTimeout limits the first fetch of the jars on a machine.
const fetchTimeout = 5 * time.Minute

// Require returns if a real Kafka can be started here, and fetches its jars. Otherwise it skips the test with the
// reason; with KAFKA_TEST_REQUIRED=1 it fails the test.
func Require(t testing.TB) {
	t.Helper()
	switch err := available(); {
	case err == nil:
	case os.Getenv("KAFKA_TEST_REQUIRED") == "1":
		t.Fatalf("KAFKA_TEST_REQUIRED=1, and no real Kafka can be started here: %v", err)
	default:
		t.Skipf("no real Kafka can be started here: %v", err)
	}
}

// available returns why no Kafka can be started here, or nil. It is cached, because a failing fetch is slow.
var available = sync.OnceValue(func() error { //nolint:gochecknoglobals // what the machine has, the same for all tests
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	_, err := Jars(ctx)
	return err
})

// StartFor starts a cluster that ends with the test, in t.TempDir unless Options names a directory. If the test fails,
// it logs the end of each node's log. With -short it skips the test: the node of Plain is then the only one.
func StartFor(t testing.TB, o Options) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped by -short: it starts a Kafka of its own")
	}
	Require(t)
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	c, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a real Kafka is at %v, with secure listeners at %v", c.Brokers(), c.SecureBrokers()) // random ports
	t.Cleanup(func() {
		c.Close()
		if !t.Failed() {
			return
		}
		for i, n := range c.nodes {
			t.Logf("end of the log of node %d:\n%s", i, n.logTail())
		}
	})
	return c
}

// Java runs a class of Kafka's jars and returns its stdout, as Cluster.Java does, for tests that use Plain.
func Java(ctx context.Context, t testing.TB, class string, args ...string) (stdout []byte, err error) {
	t.Helper()
	Require(t)
	jars, err := Jars(ctx)
	if err != nil {
		return nil, err
	}
	dir := t.TempDir()
	log := filepath.Join(dir, "log4j2.properties")
	if err := os.WriteFile(log, log4j, 0o644); err != nil {
		return nil, err
	}
	return runClass(ctx, jars, dir, log, class, args)
}

// sharedNode is the node of Plain.
type sharedNode struct {
	mu      sync.Mutex
	main    bool     // guarded by mu: Main runs
	dir     string   // guarded by mu
	cluster *Cluster // guarded by mu; nil until the first Plain
	err     error    // guarded by mu: of the start
}

var shared sharedNode //nolint:gochecknoglobals // shared by all tests of the process; Main ends it

// Plain returns the brokers in KAFKA_TEST_BROKERS, separated by commas, or if that is unset those of one node without a
// login that all tests of the process share: each test needs topics of its own. The package's TestMain must call Main.
func Plain(t testing.TB) []string {
	t.Helper()
	if brokers := os.Getenv("KAFKA_TEST_BROKERS"); brokers != "" {
		return strings.Split(brokers, ",")
	}
	Require(t)
	c, err := shared.get()
	if err != nil {
		t.Fatal(err)
	}
	return c.Brokers()
}

func (s *sharedNode) get() (*Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.main:
		return nil, errors.New("kafkatest.Plain is for packages whose TestMain calls kafkatest.Main")
	case s.cluster != nil || s.err != nil:
		return s.cluster, s.err
	}
	if s.dir, s.err = os.MkdirTemp("", "kafkatest-"); s.err == nil {
		s.cluster, s.err = Start(context.Background(), Options{Dir: s.dir})
	}
	return s.cluster, s.err
}

// Main runs the tests and ends the node of Plain: func TestMain(m *testing.M) { os.Exit(kafkatest.Main(m)) }.
func Main(m interface{ Run() int }) (code int) {
	shared.begin()
	defer func() {
		if err := shared.end(); err != nil {
			fmt.Fprintln(os.Stderr, "kafkatest:", err)
			code = 1
		}
	}()
	return m.Run()
}

func (s *sharedNode) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.main = true
}

// end ends the node, if there is one.
func (s *sharedNode) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster != nil {
		s.cluster.Close()
	}
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}
