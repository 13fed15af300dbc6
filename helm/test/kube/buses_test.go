//go:build linux

package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

// natsServers are the NATS servers of one story. A restart keeps their streams.
type natsServers struct {
	options []*server.Options
	running []*server.Server
}

func (n *natsServers) start() error {
	for _, o := range n.options {
		s, err := server.NewServer(o.Clone())
		if err != nil {
			return err
		}
		n.running = append(n.running, s)
		go s.Start()
	}
	for i, s := range n.running {
		if !s.ReadyForConnections(30 * time.Second) {
			return fmt.Errorf("NATS server %d is not ready", i)
		}
		if n.options[i].Port <= 0 {
			n.options[i].Port = s.Addr().(*net.TCPAddr).Port // a restart uses the same port
		}
	}
	return nil
}

func (n *natsServers) stop() {
	for _, s := range n.running {
		s.Shutdown()
		s.WaitForShutdown()
	}
	n.running = nil
}

// cmdNATS starts and stops the NATS of a story: `nats start` one server without a login; `nats start HOST USER...` one
// on port 4222 of the host, with a login for each user, whose password is <user>-secret; `nats cluster` three with
// TLS and credentials as in examples/nats.yaml, with nats-ca.crt and NATS_CREDS in the story's directory; `nats cluster
// USER` three at nats.bus with a login for that user; `nats stop`. It sets the environment for commands that read from
// NATS.
func (s *suite) cmdNATS(ts *testscript.TestScript, _ bool, args []string) {
	st := storyOf(ts)
	switch args[0] {
	case "start":
		if st.nats == nil {
			o := &server.Options{Host: "10.244.0.1", Port: -1, JetStream: true, StoreDir: ts.MkAbs("nats"),
				NoSigs: true, NoLog: true}
			if len(args) > 1 {
				o.Host, o.Port = args[1], 4222
				for _, user := range args[2:] {
					o.Users = append(o.Users, &server.User{Username: user, Password: user + "-secret"})
				}
				ts.Setenv("POSTBRIDGE_NATS_USER", o.Users[0].Username)
				ts.Setenv("POSTBRIDGE_NATS_PASSWORD", o.Users[0].Password)
			}
			st.nats = &natsServers{options: []*server.Options{o}}
		}
		ts.Check(st.nats.start())
		ts.Setenv("POSTBRIDGE_NATS_URL", fmt.Sprintf("nats://%s:%d", st.nats.options[0].Host, st.nats.options[0].Port))
	case "cluster":
		if len(args) > 1 {
			st.nats = &natsServers{options: natsCluster(ts.MkAbs("."), "10.244.0.4", "10.244.0.6", "10.244.0.7")}
			for _, o := range st.nats.options {
				o.Username, o.Password = args[1], args[1]+"-secret"
			}
			ts.Check(st.nats.start())
			ts.Setenv("POSTBRIDGE_NATS_USER", args[1])
			ts.Setenv("POSTBRIDGE_NATS_PASSWORD", args[1]+"-secret")
			ts.Setenv("POSTBRIDGE_NATS_URL", "nats://nats.bus:4222")
			break
		}
		options, err := secureCluster(ts.MkAbs("."))
		ts.Check(err)
		st.nats = &natsServers{options: options}
		ts.Check(st.nats.start())
		ts.Setenv("POSTBRIDGE_NATS_URL", "tls://nats.nats:4222")
		ts.Setenv("POSTBRIDGE_NATS_CREDS_FILE", ts.MkAbs("NATS_CREDS"))
		ts.Setenv("POSTBRIDGE_NATS_TLS_CA_FILE", ts.MkAbs("nats-ca.crt"))
	case "stop":
		st.nats.stop()
	default:
		ts.Fatalf("nats %s?", args[0])
	}
}

// secureCluster starts three servers at nats.nats:4222.
func secureCluster(dir string) ([]*server.Options, error) {
	config, err := serverTLS(dir+"/nats-ca.crt", "nats.nats")
	if err != nil {
		return nil, err
	}
	auth, err := makeAccount(dir + "/NATS_CREDS")
	if err != nil {
		return nil, err
	}
	all := natsCluster(dir, "10.244.0.1", "10.244.0.2", "10.244.0.3")
	for _, o := range all {
		o.TLSConfig = config
		auth(o)
	}
	return all, nil
}

// natsCluster returns the options of a cluster with a server at each address.
func natsCluster(dir string, addresses ...string) (all []*server.Options) {
	var routes []*url.URL
	for i, host := range addresses {
		routes = append(routes, &url.URL{Scheme: "nats", Host: host + ":6222"})
		all = append(all, &server.Options{
			ServerName: fmt.Sprint("nats-", i), Host: host, Port: 4222, JetStream: true,
			StoreDir: filepath.Join(dir, fmt.Sprint("nats-", i)),
			Cluster:  server.ClusterOpts{Name: "nats", Host: host, Port: 6222}, NoSigs: true, NoLog: true,
		})
	}
	for _, o := range all {
		o.Routes = routes
	}
	return all
}

// makeAccount creates an account with JetStream and a user, and writes the user's credentials to a file.
func makeAccount(file string) (func(*server.Options), error) {
	var failure error
	key := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		k, err := create()
		if err != nil {
			failure = err
			return nil, ""
		}
		public, _ := k.PublicKey() // cannot fail for a new key
		return k, public
	}
	operator, operatorID := key(nkeys.CreateOperator)
	account, accountID := key(nkeys.CreateAccount)
	_, systemID := key(nkeys.CreateAccount)
	user, userID := key(nkeys.CreateUser)
	if failure != nil {
		return nil, failure
	}
	claims := jwt.NewAccountClaims(accountID)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	resolver := &server.MemAccResolver{}
	for id, c := range map[string]*jwt.AccountClaims{accountID: claims, systemID: jwt.NewAccountClaims(systemID)} {
		text, err := c.Encode(operator)
		if err != nil {
			return nil, err
		}
		if err := resolver.Store(id, text); err != nil {
			return nil, err
		}
	}
	token, err := jwt.NewUserClaims(userID).Encode(account)
	if err != nil {
		return nil, err
	}
	seed, err := user.Seed()
	if err != nil {
		return nil, err
	}
	creds, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		return nil, err
	}
	return func(o *server.Options) {
		o.TrustedKeys, o.AccountResolver, o.SystemAccount = []string{operatorID}, resolver, systemID
	}, os.WriteFile(file, creds, 0o600)
}

// serverTLS creates a certificate for the name, and writes the certificate of its CA to a file.
func serverTLS(caFile, name string) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

// cmdKafka starts the Kafka of a story as in examples/kafka.yaml: three nodes with TLS and SASL, and on port 9094 with
// client certificates. It writes kafka-ca.crt, KAFKA_PASSWORD, user.crt and user.key into the story's directory, and
// sets the environment for commands that read from Kafka.
func (s *suite) cmdKafka(ts *testscript.TestScript, _ bool, _ []string) {
	brokers := []string{"kafka-0.kafka:9093", "kafka-1.kafka:9093", "kafka-2.kafka:9093"}
	cluster := kafkatest.StartFor(storyOf(ts).t, kafkatest.Options{
		Nodes: 3, Secure: true, SecureListen: brokers,
		ClientAuth: true, ClientAuthListen: []string{"kafka-0.kafka:9094", "kafka-1.kafka:9094", "kafka-2.kafka:9094"},
	})
	for name, file := range map[string]string{
		"kafka-ca.crt": cluster.CAFile(), "user.crt": cluster.ClientCertFile(), "user.key": cluster.ClientKeyFile(),
	} {
		text, err := os.ReadFile(file)
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name), text, 0o600))
	}
	ts.Check(os.WriteFile(ts.MkAbs("KAFKA_PASSWORD"), []byte(kafkatest.Password), 0o600))
	ts.Setenv("POSTBRIDGE_PUBLISH", "kafka")
	ts.Setenv("POSTBRIDGE_KAFKA_BROKERS", strings.Join(brokers, ","))
	ts.Setenv("POSTBRIDGE_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")
	ts.Setenv("POSTBRIDGE_KAFKA_USER", kafkatest.User)
	ts.Setenv("POSTBRIDGE_KAFKA_PASSWORD_FILE", ts.MkAbs("KAFKA_PASSWORD"))
	ts.Setenv("POSTBRIDGE_KAFKA_TLS_CA_FILE", ts.MkAbs("kafka-ca.crt"))
}
