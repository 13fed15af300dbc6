// Package kafkatest runs a real Apache Kafka on loopback, for tests and for make kafka: nodes in JVMs, with jars from
// Maven. It needs Java 17 or newer, and Maven for the first run.
package kafkatest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	startTimeout = 2 * time.Minute // long, for a busy machine
	stopTimeout  = 30 * time.Second
	askTimeout   = 2 * time.Second // of one request
	askInterval  = 25 * time.Millisecond
)

// Cluster is a started cluster. Its methods may be called from any goroutine.
type Cluster struct {
	dir, jars string
	options   Options
	nodes     []*node
}

// node is one process, broker and controller.
type node struct {
	endpoints
	id  int // node.id, from 1
	dir string

	mu      sync.Mutex
	process *process // guarded by mu; nil while stopped
}

// Start starts a cluster and returns when each node knows all others and assigns producer ids. ctx limits only the
// start. Close ends the cluster, and so does the end of this process.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	jars, err := Jars(ctx)
	if err != nil {
		return nil, err
	}
	return start(ctx, jars, o)
}

func start(ctx context.Context, jars string, o Options) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	c := &Cluster{dir: o.Dir, jars: jars, options: o}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	all := make([]int, len(c.nodes))
	for i := range all {
		all[i] = i
	}
	err = c.each(func(i int) error {
		if err := c.launch(i); err != nil {
			return err
		}
		return c.await(ctx, i, all)
	})
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// prepare writes all files and formats the data directories.
func (c *Cluster) prepare(ctx context.Context) error {
	all, err := chooseEndpoints(c.options)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "tmp"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(c.log4j(), log4j, 0o644); err != nil {
		return err
	}
	if c.options.Secure || c.options.ClientAuth {
		if err := makeCertificates(c.tls(), c.options.secureHosts()); err != nil {
			return err
		}
	}
	for i, e := range all {
		n := &node{endpoints: e, id: i + 1, dir: filepath.Join(c.dir, fmt.Sprint("node-", i))}
		c.nodes = append(c.nodes, n)
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(n.properties(), c.options.properties(i, all, n.data(), c.tls()), 0o600); err != nil {
			return err
		}
	}
	id := clusterID()
	return c.each(func(i int) error {
		if exists(filepath.Join(c.nodes[i].data(), "meta.properties")) {
			return nil
		}
		args := append([]string{"format", "-t", id, "-c", c.nodes[i].properties()}, c.options.formatArgs()...)
		_, err := c.Java(ctx, "kafka.tools.StorageTool", args...)
		return err
	})
}

// clusterID returns a random cluster id, as StorageTool random-uuid does.
func clusterID() string {
	for {
		id := make([]byte, 16)
		_, _ = rand.Read(id) // never fails
		if text := base64.RawURLEncoding.EncodeToString(id); text[0] != '-' {
			return text
		}
	}
}

// each calls do for all nodes concurrently.
func (c *Cluster) each(do func(i int) error) error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i := range c.nodes {
		wg.Go(func() { errs[i] = do(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *Cluster) tls() string   { return filepath.Join(c.dir, "tls") }
func (c *Cluster) log4j() string { return filepath.Join(c.dir, "log4j2.properties") }

func (n *node) properties() string { return filepath.Join(n.dir, "server.properties") }
func (n *node) data() string       { return filepath.Join(n.dir, "data") }
func (n *node) log() string        { return filepath.Join(n.dir, "broker.log") }

// launch starts the JVM of node i.
func (c *Cluster) launch(i int) error {
	n := c.nodes[i]
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil && !n.process.ended() {
		return fmt.Errorf("kafkatest: node %d runs already", i)
	}
	// A killed JVM leaves files there.
	tmp := filepath.Join(n.dir, "tmp")
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return err
	}
	args, err := java(c.jars, tmp, c.log4j())
	if err != nil {
		return err
	}
	args = append(args, "-Xms128m", "-Xmx512m")
	args = append(append(args, c.options.JVM...), "kafka.Kafka", n.properties())
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = n.dir, log, log
	n.process, err = startProcess(cmd)
	return err
}

// await waits until node i knows the given nodes and assigns producer ids.
func (c *Cluster) await(ctx context.Context, i int, known []int) error {
	n := c.nodes[i]
	n.mu.Lock()
	p := n.process
	n.mu.Unlock()
	var last error
	err := poll(ctx, askInterval, func() (bool, error) {
		if p.ended() {
			return false, fmt.Errorf("it has ended: %w", p.err)
		}
		last = n.ready(ctx, known)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("kafkatest: node %d is not ready: %w\nlast check: %w\nend of %s:\n%s",
			i, err, last, n.log(), n.logTail())
	}
	return nil
}

// ready returns why the node is not ready, or nil.
func (n *node) ready(ctx context.Context, known []int) error {
	// Each check has connections of its own: kafka-go would otherwise wait before it dials again.
	conn, err := net.DialTimeout("tcp", n.plain, askTimeout)
	if err != nil {
		return err // cheaper than a failing client
	}
	_ = conn.Close()
	return ask(ctx, n.plain, func(ctx context.Context, client *kafka.Client) error {
		m, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{}})
		if err != nil {
			return err
		}
		for _, i := range known {
			if !slices.ContainsFunc(m.Brokers, func(b kafka.Broker) bool { return b.ID == i+1 }) {
				return fmt.Errorf("node %d is not known yet", i)
			}
		}
		r, err := client.InitProducerID(ctx, &kafka.InitProducerIDRequest{ProducerID: -1, ProducerEpoch: -1})
		if err != nil {
			return err
		}
		return r.Error // while the coordinator loads
	})
}

// ask sends a request to the node at addr, over connections of its own.
func ask(ctx context.Context, addr string, question func(context.Context, *kafka.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	transport := &kafka.Transport{DialTimeout: askTimeout}
	defer transport.CloseIdleConnections()
	return question(ctx, &kafka.Client{Addr: kafka.TCP(addr), Transport: transport})
}

// logTail returns the end of the node's log.
func (n *node) logTail() []byte {
	text, _ := os.ReadFile(n.log())
	return tail(text)
}

// Brokers returns the host:port of each node's plaintext listener.
func (c *Cluster) Brokers() []string {
	return c.addresses(func(e endpoints) string { return e.plain })
}

// SecureBrokers returns the host:port of each node's listener with TLS and SASL.
func (c *Cluster) SecureBrokers() []string {
	return c.addresses(func(e endpoints) string { return e.secure })
}

// ClientAuthBrokers returns the host:port of each node's listener with TLS that requires a client certificate.
func (c *Cluster) ClientAuthBrokers() []string {
	return c.addresses(func(e endpoints) string { return e.clientAuth })
}

func (c *Cluster) addresses(of func(endpoints) string) []string {
	all := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		all[i] = of(n.endpoints)
	}
	return all
}

// CAFile returns the file of the CA certificate.
func (c *Cluster) CAFile() string { return filepath.Join(c.tls(), "ca.pem") }

// ClientCertFile returns the file of a client certificate.
func (c *Cluster) ClientCertFile() string { return filepath.Join(c.tls(), "client.pem") }

// ClientKeyFile returns the file of its key.
func (c *Cluster) ClientKeyFile() string { return filepath.Join(c.tls(), "client-key.pem") }

// Kill kills a node, as kill -9 does. Nodes count from 0.
func (c *Cluster) Kill(node int) error {
	p, err := c.nodes[node].take()
	if err != nil {
		return fmt.Errorf("kafkatest: kill node %d: %w", node, err)
	}
	return p.kill()
}

// Stop stops a node in order.
func (c *Cluster) Stop(node int) error {
	n := c.nodes[node]
	p, err := n.take()
	if err != nil {
		return fmt.Errorf("kafkatest: stop node %d: %w", node, err)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
	late := time.NewTimer(stopTimeout)
	defer late.Stop()
	select {
	case <-p.done:
		return nil // its exit code is 143
	case <-late.C:
		err := fmt.Errorf("kafkatest: node %d took more than %v to stop and was killed; end of its log:\n%s",
			node, stopTimeout, n.logTail())
		return errors.Join(err, p.kill())
	}
}

// take removes the running process from the node and returns it.
func (n *node) take() (*process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.process
	switch {
	case p == nil:
		return nil, errors.New("it does not run")
	case p.ended():
		return nil, fmt.Errorf("it has ended by itself: %w; end of its log:\n%s", p.err, n.logTail())
	}
	n.process = nil
	return p, nil
}

// StartNode starts a stopped node with its data and returns when it is ready. A cluster of three nodes needs two: if
// two are down, start both concurrently.
func (c *Cluster) StartNode(ctx context.Context, node int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.launch(node); err != nil {
		return err
	}
	return c.await(ctx, node, []int{node})
}

// Leader waits until a partition has a leader and returns it. For a while after a kill that is the killed node.
func (c *Cluster) Leader(ctx context.Context, topic string, partition int) (node int, err error) {
	last := errors.New("no node runs")
	err = poll(ctx, askInterval, func() (bool, error) {
		for _, n := range c.nodes {
			if !n.runs() {
				continue
			}
			if node, last = n.leader(ctx, topic, partition); last == nil {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return 0, fmt.Errorf("kafkatest: leader of %s/%d: %w; last check: %w", topic, partition, err, last)
	}
	return node, nil
}

func (n *node) runs() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process != nil && !n.process.ended()
}

// leader returns the leader of a partition, according to the node.
func (n *node) leader(ctx context.Context, topic string, partition int) (node int, err error) {
	err = ask(ctx, n.plain, func(ctx context.Context, client *kafka.Client) error {
		m, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			return err
		}
		for _, t := range m.Topics {
			for _, p := range t.Partitions {
				if t.Name == topic && p.ID == partition && p.Leader.Host != "" { // kafka-go: the zero Broker if none
					node = p.Leader.ID - 1
					return nil
				}
			}
		}
		return errors.New("has no leader")
	})
	return node, err
}

// Close kills all nodes. A cluster may be closed more than once.
func (c *Cluster) Close() {
	for _, n := range c.nodes {
		if p, err := n.take(); err == nil {
			_ = p.kill() // it has ended in any case
		}
	}
}

// kill kills the process and waits for its end.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// Java runs a class of the jars, such as org.apache.kafka.tools.consumer.ConsoleConsumer, and returns its stdout, also
// together with an error, which contains its stderr.
func (c *Cluster) Java(ctx context.Context, class string, args ...string) (stdout []byte, err error) {
	tmp, err := os.MkdirTemp(filepath.Join(c.dir, "tmp"), "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	return runClass(ctx, c.jars, tmp, c.log4j(), class, args)
}

// runClass runs a class in the directory tmp.
func runClass(ctx context.Context, jars, tmp, log4j, class string, args []string) (stdout []byte, err error) {
	line, err := java(jars, tmp, log4j)
	if err != nil {
		return nil, err
	}
	line = append(append(line, "-Xmx256m", class), args...)
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = tmp, &out, &errOut
	p, err := startProcess(cmd)
	if err == nil {
		err = p.wait()
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", class, strings.Join(args, " "), err, tail(out.Bytes()),
			tail(errOut.Bytes()))
	}
	return out.Bytes(), err
}

// Wait waits until ctx ends, or returns an error once a node has ended by itself.
func (c *Cluster) Wait(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return c.each(func(i int) error {
		n := c.nodes[i]
		n.mu.Lock()
		p := n.process
		n.mu.Unlock()
		if p == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.done:
			err := fmt.Errorf("kafkatest: node %d has ended by itself: %w; end of its log:\n%s", i, p.err, n.logTail())
			cancel(err)
			return err
		}
	})
}
