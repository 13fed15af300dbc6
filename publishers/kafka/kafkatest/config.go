package kafkatest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
)

// Options are the options of a cluster.
type Options struct {
	// Dir is the directory of all files: configuration, logs, data, certificates, temporary files. It is created if
	// missing. Data of an earlier cluster with the same number of nodes is used again.
	Dir string

	// Nodes is the number of nodes: 0 and 1 mean one; 3 means three with replication 3 and min.insync.replicas 2.
	Nodes int

	// Secure adds listeners with TLS and SASL: SCRAM-SHA-256, SCRAM-SHA-512 and PLAIN, for User with Password.
	Secure bool

	// SecureListen is the host:port of the secure listener of each node, for clients that cannot reach 127.0.0.1;
	// empty for free ports there. The certificate is valid for these hosts, too.
	SecureListen []string

	// ClientAuth adds listeners with TLS that require a client certificate, whose principal is User.
	ClientAuth bool

	// ClientAuthListen is the host:port of these listeners, as SecureListen, whose hosts it has.
	ClientAuthListen []string

	// ACLs denies what is not granted, except on the plaintext listeners, which serve to grant it.
	ACLs bool

	// Properties are added to server.properties of each node and override the generated ones.
	Properties map[string]string

	// JVM are additional options for the JVM of each node; they precede the generated ones.
	JVM []string

	// Listen is the host:port of the plaintext listener of the first node; empty for a free port on 127.0.0.1.
	Listen string
}

// User and Password are the login at secure listeners.
const (
	User     = "edge"
	Password = "edge-secret"
)

// endpoints are the addresses of a node.
type endpoints struct {
	plain, secure, clientAuth, controller string // host:port
}

// chooseEndpoints finds free ports for all nodes.
func chooseEndpoints(o Options) ([]endpoints, error) {
	var held []net.Listener // open until all are chosen, so that no port is chosen twice
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	var failure error
	choose := func() string {
		l, err := listenBelowEphemeral()
		if err != nil {
			failure = err
			return ""
		}
		held = append(held, l)
		return l.Addr().String()
	}
	if o.Listen != "" {
		l, err := net.Listen("tcp", o.Listen)
		if err != nil {
			return nil, fmt.Errorf("kafkatest: cannot listen: %w", err)
		}
		held = append(held, l)
	}
	nodes := make([]endpoints, max(1, o.Nodes))
	for i := range nodes {
		nodes[i] = endpoints{plain: choose(), secure: choose(), clientAuth: choose(), controller: choose()}
	}
	nodes[0].plain = cmp.Or(o.Listen, nodes[0].plain)
	for i, address := range o.SecureListen {
		nodes[i].secure = address
	}
	for i, address := range o.ClientAuthListen {
		nodes[i].clientAuth = address
	}
	return nodes, failure
}

// listenBelowEphemeral listens on a port below the ephemeral range: no other process gets it while its node is down,
// and a client that dials a node that is down does not connect to itself.
func listenBelowEphemeral() (net.Listener, error) {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(12_000))); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no free port found: %w", err)
}

func (o Options) check() error {
	switch {
	case o.Dir == "":
		return errors.New("kafkatest: Options.Dir is empty")
	case o.Nodes != 0 && o.Nodes != 1 && o.Nodes != 3:
		return fmt.Errorf("kafkatest: %d nodes; there can be 1 or 3", o.Nodes)
	case len(o.SecureListen) > 0 && (!o.Secure || len(o.SecureListen) != max(1, o.Nodes)):
		return errors.New("kafkatest: Options.SecureListen needs Options.Secure and an address for each node")
	}
	for _, address := range append([]string{o.Listen}, o.SecureListen...) {
		if host, _, err := net.SplitHostPort(address); address != "" && (err != nil || host == "") {
			return fmt.Errorf("kafkatest: %q is not an address for clients; write it like 127.0.0.1:9092", address)
		}
	}
	return nil
}

// secureHosts returns the hosts of SecureListen.
func (o Options) secureHosts() (all []string) {
	for _, address := range o.SecureListen {
		host, _, _ := net.SplitHostPort(address) // was checked
		all = append(all, host)
	}
	return all
}

// properties returns the server.properties of node i.
func (o Options) properties(i int, all []endpoints, data, tls string) []byte {
	voters := make([]string, len(all))
	for j, e := range all {
		voters[j] = fmt.Sprintf("%d@%s", j+1, e.controller)
	}
	listeners := []string{"PLAINTEXT://" + all[i].plain}
	if o.Secure {
		listeners = append(listeners, "SASL_SSL://"+all[i].secure)
	}
	if o.ClientAuth {
		listeners = append(listeners, "SSL://"+all[i].clientAuth)
	}
	advertised := strings.Join(listeners, ",")
	p := map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        fmt.Sprint(i + 1),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"controller.listener.names":      "CONTROLLER",
		"listeners":                      advertised + ",CONTROLLER://" + all[i].controller,
		"advertised.listeners":           advertised,
		"listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
		"inter.broker.listener.name":     "PLAINTEXT",
		"log.dirs":                       data,

		"auto.create.topics.enable":    "false",
		"offsets.topic.num.partitions": "1",
		// The transaction coordinator, which kafka-go asks for a producer id, would first create 50 partitions.
		"transaction.state.log.num.partitions": "1",
		"group.initial.rebalance.delay.ms":     "0",
		// The default is 9 s, which a killed broker must wait until its old session ends.
		"broker.session.timeout.ms":      "6000",
		"broker.heartbeat.interval.ms":   "500",
		"log.cleaner.dedupe.buffer.size": "2097152", // of 128 MB of heap
	}
	if len(all) > 1 {
		p["default.replication.factor"] = fmt.Sprint(len(all))
		p["min.insync.replicas"] = "2"
	} else {
		p["offsets.topic.replication.factor"] = "1"
		p["transaction.state.log.replication.factor"] = "1"
		p["transaction.state.log.min.isr"] = "1"
		p["share.coordinator.state.topic.replication.factor"] = "1"
		p["share.coordinator.state.topic.min.isr"] = "1"
		p["broker.session.timeout.ms"] = "2000" // there is no other to lead meanwhile
	}
	if o.Secure {
		o.secure(p)
	}
	if o.Secure || o.ClientAuth {
		p["ssl.keystore.type"] = "PEM"
		p["ssl.keystore.location"] = tls + "/server.pem"
		p["ssl.truststore.type"] = "PEM"
		p["ssl.truststore.location"] = tls + "/ca.pem"
	}
	if o.ClientAuth {
		p["listener.name.ssl.ssl.client.auth"] = "required"
		p["listener.name.ssl.ssl.principal.mapping.rules"] = "RULE:^CN=(.*?)$/$1/"
	}
	if o.ACLs {
		p["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
		p["super.users"] = "User:ANONYMOUS" // clients without a login, such as the nodes themselves
	}
	maps.Copy(p, o.Properties)
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(p)) {
		b = fmt.Appendf(b, "%s=%s\n", name, p[name])
	}
	return b
}

func (o Options) secure(p map[string]string) {
	const scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
	p["sasl.enabled.mechanisms"] = "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN"
	p["listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config"] = scram
	p["listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config"] = scram
	p["listener.name.sasl_ssl.plain.sasl.jaas.config"] = fmt.Sprintf(
		"org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=%q;", User, Password)
}

// formatArgs returns the arguments of StorageTool format that create the SCRAM users.
func (o Options) formatArgs() (args []string) {
	if o.Secure {
		for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			args = append(args, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, User, Password))
		}
	}
	return args
}
