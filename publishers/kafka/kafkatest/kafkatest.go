// Package kafkatest runs a real Apache Kafka on loopback, for tests and for people: brokers in JVMs, from Maven's jars.
// It needs Java 17 or newer, and Maven once.
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
	startTimeout = 2 * time.Minute // for a machine with much else to do
	stopTimeout  = 30 * time.Second
	askTimeout   = 2 * time.Second // for one look
	askInterval  = 25 * time.Millisecond
)

// Cluster is one that was started. Its methods may be called concurrently.
type Cluster struct {
	dir, jars string
	options   Options
	nodes     []*node
}

// node is one broker and controller.
type node struct {
	endpoints
	id  int // in Kafka, where they count from 1
	dir string

	mu      sync.Mutex
	process *process // guarded by mu; nil while stopped
}

// Start starts a cluster and returns when each of its nodes knows all others and gives out producer ids. ctx is for the
// start only: Close ends the cluster, or else the end of this process does.
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

// prepare writes all files and formats the directories for data.
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

// clusterID is a new one, as StorageTool random-uuid gives.
func clusterID() string {
	for {
		id := make([]byte, 16)
		_, _ = rand.Read(id) // never fails
		if text := base64.RawURLEncoding.EncodeToString(id); text[0] != '-' {
			return text
		}
	}
}

// each calls do for all nodes at once.
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
	// What a JVM that was killed has left.
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

// await waits until node i knows the nodes given, and gives out producer ids.
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
		return fmt.Errorf(
			"kafkatest: node %d does not come up: %w\nlast look: %w\nend of %s:\n%s",
			i,
			err,
			last,
			n.log(),
			n.said(),
		)
	}
	return nil
}

// ready says why the node is not what await waits for.
func (n *node) ready(ctx context.Context, known []int) error {
	// A connection for each look: kafka-go would otherwise wait before it tries again.
	conn, err := net.DialTimeout("tcp", n.plain, askTimeout)
	if err != nil {
		return err // cheaper to find out so
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

// ask asks the node at addr, over connections of its own.
func ask(ctx context.Context, addr string, question func(context.Context, *kafka.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	transport := &kafka.Transport{DialTimeout: askTimeout}
	defer transport.CloseIdleConnections()
	return question(ctx, &kafka.Client{Addr: kafka.TCP(addr), Transport: transport})
}

// said is the end of what the node has logged.
func (n *node) said() []byte {
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

// CAFile is the certificate that the nodes' certificates are checked with.
func (c *Cluster) CAFile() string { return filepath.Join(c.tls(), "ca.pem") }

// ClientCertFile is the certificate of a client.
func (c *Cluster) ClientCertFile() string { return filepath.Join(c.tls(), "client.pem") }

// ClientKeyFile is the key of ClientCertFile.
func (c *Cluster) ClientKeyFile() string { return filepath.Join(c.tls(), "client-key.pem") }

// Kill kills a node, which counts from 0, as kill -9 does.
func (c *Cluster) Kill(node int) error {
	p, err := c.nodes[node].take()
	if err != nil {
		return fmt.Errorf("kafkatest: kill node %d: %w", node, err)
	}
	return p.kill()
}

// Stop ends a node in order.
func (c *Cluster) Stop(node int) error {
	n := c.nodes[node]
	p, err := n.take()
	if err != nil {
		return fmt.Errorf("kafkatest: stop node %d: %w", node, err)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it has ended already, or wait tells
	late := time.NewTimer(stopTimeout)
	defer late.Stop()
	select {
	case <-p.done:
		return nil // a JVM ends with 143 then
	case <-late.C:
		return errors.Join(
			fmt.Errorf(
				"kafkatest: node %d took more than %v to stop and was killed; end of its log:\n%s",
				node,
				stopTimeout,
				n.said(),
			),
			p.kill(),
		)
	}
}

// take returns the running process, which the node has no longer.
func (n *node) take() (*process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.process
	switch {
	case p == nil:
		return nil, errors.New("it does not run")
	case p.ended():
		return nil, fmt.Errorf("it has ended by itself: %w; end of its log:\n%s", p.err, n.said())
	}
	n.process = nil
	return p, nil
}

// StartNode starts a node again, with its data, and returns when it answers. With three nodes two have to run for any
// to answer: if two are down, start both at once.
func (c *Cluster) StartNode(ctx context.Context, node int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.launch(node); err != nil {
		return err
	}
	return c.await(ctx, node, []int{node})
}

// Leader returns the node that leads a partition, waiting for there to be one. For a while after a kill that is the
// node that was killed.
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
		return 0, fmt.Errorf("kafkatest: leader of %s/%d: %w; last look: %w", topic, partition, err, last)
	}
	return node, nil
}

func (n *node) runs() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process != nil && !n.process.ended()
}

// leader asks the node who leads a partition.
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
		return errors.New("there is none")
	})
	return node, err
}

// Close ends what runs, with no regard to data. A cluster may be closed more than once.
func (c *Cluster) Close() {
	for _, n := range c.nodes {
		if p, err := n.take(); err == nil {
			_ = p.kill() // it has ended either way
		}
	}
}

// kill ends the process and waits until it has.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// Java runs a class of the jars, as org.apache.kafka.tools.consumer.ConsoleConsumer, and returns its stdout, also
// with an error, which has its stderr.
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
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = tmp, &out, &said
	p, err := startProcess(cmd)
	if err == nil {
		err = p.wait()
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", class, strings.Join(args, " "), err, tail(out.Bytes()), tail(said.Bytes()))
	}
	return out.Bytes(), err
}

// Wait waits until ctx ends, or returns an error when a node has ended by itself before.
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
			err := fmt.Errorf("kafkatest: node %d has ended by itself: %w; end of its log:\n%s", i, p.err, n.said())
			cancel(err)
			return err
		}
	})
}
