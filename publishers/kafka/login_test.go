package kafka

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

func startKfake(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

func constant(text string) func() string { return func() string { return text } }

// A wrong password is named as such, and the next connection asks again for it.
func TestLogin(t *testing.T) {
	t.Parallel()
	const right, wrong = "right-secret", "wrong-secret"
	for _, mechanism := range []string{mechanismPlain, mechanismScram256, mechanismScram512} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			cluster := startKfake(t, kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser(mechanism, "edge", right))
			addr := kafkago.TCP(cluster.ListenAddrs()...)
			var password atomic.Value
			password.Store(wrong)
			tr := openTransport(
				t,
				Config{
					SASLMechanism: mechanism,
					User:          "edge",
					Password:      func() string { return password.Load().(string) },
				},
			)
			err := fails(t, tr, addr, "Kafka broker "+addr.String()+`: login of user "edge" (`+mechanism+
				"): the broker closed the connection")
			if strings.Contains(err.Error(), wrong) {
				t.Errorf("%v", err)
			}
			password.Store(right)
			mustAsk(t, tr, addr)
			mustAsk(t, tr, addr)

			// A connection stays logged in; it is for the owner to renew it.
			password.Store(wrong)
			mustAsk(t, tr, addr)
			tr.renew()
			fails(t, tr, addr, "login of user")
		})
	}
}

func TestLoginRefused(t *testing.T) {
	t.Parallel()
	const password = "hunter2"
	for name, test := range map[string]struct {
		answer protocol.Message
		want   string
	}{
		"password": {&saslauthenticate.Response{ErrorCode: 58, ErrorMessage: "invalid credentials"}, `login of user "edge" (PLAIN): [58] SASL Authentication Failed: ` +
			"SASL Authentication failed: invalid credentials"},
		"no words":     {&saslauthenticate.Response{ErrorCode: 58}, ": [58] SASL Authentication Failed: "},
		"indiscretion": {&saslauthenticate.Response{ErrorCode: 58, ErrorMessage: "not " + password}, "the broker's message holds the password"},
		"mechanism": {&saslhandshake.Response{ErrorCode: 33, Mechanisms: []string{"GSSAPI", "SCRAM-SHA-512"}},
			`; the broker offers ["GSSAPI" "SCRAM-SHA-512"]`},
		"no login":         {&saslhandshake.Response{ErrorCode: 34}, ": [34] Illegal SASL State: "},
		"something else":   {&saslhandshake.Response{ErrorCode: -1}, ": [-1] Unknown"},
		"closed":           {(*saslauthenticate.Response)(nil), "the broker closed the connection"},
		"closed even then": {(*saslhandshake.Response)(nil), "the broker closed the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startScripted(t, func(req protocol.Message) (protocol.Message, bool) {
				if req.ApiKey() != test.answer.ApiKey() {
					return nil, true
				}
				closed := test.answer == (*saslauthenticate.Response)(nil) ||
					test.answer == (*saslhandshake.Response)(nil)
				return test.answer, !closed
			})
			tr := openTransport(t, Config{SASLMechanism: mechanismPlain, User: "edge", Password: constant(password)})
			err := fails(t, tr, s.addr, "Kafka broker "+s.addr.String()+": ", test.want)
			if strings.Contains(err.Error(), password) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A broker has to prove that it knows the password, too.
func TestLoginUnproven(t *testing.T) {
	t.Parallel()
	s := startScripted(t, func(req protocol.Message) (protocol.Message, bool) {
		if a, ok := req.(*saslauthenticate.Request); ok {
			_, nonce, _ := strings.Cut(string(a.AuthBytes), ",r=")
			if strings.HasPrefix(string(a.AuthBytes), "n,,") {
				return &saslauthenticate.Response{AuthBytes: []byte("r=" + nonce + "x,s=c2FsdA==,i=4096")}, true
			}
			return &saslauthenticate.Response{AuthBytes: []byte("v=bm90aGluZw==")}, true
		}
		return nil, true
	})
	tr := openTransport(t, Config{SASLMechanism: mechanismScram256, User: "edge", Password: constant("hunter2")})
	fails(t, tr, s.addr, "login of user", "server validation failed")
}

// The library's error shows the character.
func TestLoginCharacter(t *testing.T) {
	t.Parallel()
	s := startScripted(t, asUsual)
	tr := openTransport(t, Config{SASLMechanism: mechanismScram256, User: "edge", Password: constant("hunter\u0007")})
	err := fails(t, tr, s.addr, "login of user", "a character is not allowed in the user or the password")
	if strings.Contains(err.Error(), "0007") {
		t.Errorf("%v", err)
	}
}

func TestLoginWanted(t *testing.T) {
	t.Parallel()
	cluster := startKfake(t, kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser(mechanismPlain, "edge", "secret"))
	tr, addr := openTransport(t, Config{}), kafkago.TCP(cluster.ListenAddrs()...)
	fails(t, tr, addr, ": Metadata: the broker closed the connection")
}

// A login may be for a time; the connection is not used after that.
func TestLoginExpires(t *testing.T) {
	t.Parallel()
	s := startScripted(t, func(req protocol.Message) (protocol.Message, bool) {
		if _, ok := req.(*saslauthenticate.Request); ok {
			return &saslauthenticate.Response{SessionLifetimeMs: 10_000}, true
		}
		return nil, true
	})
	tr := openTransport(t, Config{SASLMechanism: mechanismPlain, User: "edge", Password: constant("secret")})
	mustAsk(t, tr, s.addr)
	if left := time.Until(tr.idleTo(s.addr)[0].until); left > 9*time.Second {
		t.Errorf("is kept for %v", left)
	}
}

// What a real broker does is not always what kfake does.
func TestLoginKafka(t *testing.T) {
	t.Parallel()
	kafkatest.Require(t)
	c := kafkatest.StartFor(t, kafkatest.Options{Secure: true, ClientAuth: true})
	const wrong = "hunter2"
	ca := Config{TLSCAFile: c.CAFile()}
	own := Config{TLSCAFile: c.CAFile(), TLSCertFile: c.ClientCertFile(), TLSKeyFile: c.ClientKeyFile()}
	stranger := ca
	stranger.TLSCertFile, stranger.TLSKeyFile = filepath.Join(
		t.TempDir(),
		"cert.pem",
	), filepath.Join(
		t.TempDir(),
		"key.pem",
	)
	cert, key := newAuthority(t).issue("stranger", time.Hour)
	replace(t, stranger.TLSCertFile, cert)
	replace(t, stranger.TLSKeyFile, key)
	as := func(cfg Config, mechanism, password string) Config {
		cfg.SASLMechanism, cfg.User, cfg.Password = mechanism, kafkatest.User, constant(password)
		return cfg
	}
	const right = kafkatest.Password
	for name, test := range map[string]struct {
		brokers []string
		config  Config
		want    string // empty if it lets us in
	}{
		"plain":                   {c.Brokers(), Config{}, ""},
		"PLAIN":                   {c.SecureBrokers(), as(ca, mechanismPlain, right), ""},
		"SCRAM-SHA-256":           {c.SecureBrokers(), as(ca, mechanismScram256, right), ""},
		"SCRAM-SHA-512":           {c.SecureBrokers(), as(ca, mechanismScram512, right), ""},
		"certificate":             {c.ClientAuthBrokers(), own, ""},
		"wrong password, PLAIN":   {c.SecureBrokers(), as(ca, mechanismPlain, wrong), "Authentication failed"},
		"wrong password, SCRAM":   {c.SecureBrokers(), as(ca, mechanismScram512, wrong), "Authentication failed"},
		"no login":                {c.SecureBrokers(), ca, "Metadata: the broker closed the connection"},
		"login at the plain port": {c.Brokers(), as(Config{}, mechanismScram512, right), "login of user"},
		"TLS at the plain port":   {c.Brokers(), Config{TLS: true}, "TLS handshake: the broker closed the connection"},
		"plain at the TLS port":   {c.SecureBrokers(), Config{}, `the answer is not Kafka's: it starts with "\x15\x03`},
		"no certificate":          {c.ClientAuthBrokers(), ca, "remote error: tls: bad certificate"},
		"stranger's certificate":  {c.ClientAuthBrokers(), stranger, "remote error: tls: "},
		"another authority":       {c.SecureBrokers(), Config{TLS: true}, "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, addr := openTransport(t, test.config), kafkago.TCP(test.brokers[0])
			if test.want == "" {
				mustAsk(t, tr, addr)
				return
			}
			err := fails(t, tr, addr, test.want)
			if strings.Contains(err.Error(), wrong) {
				t.Errorf("%v", err)
			}
		})
	}
}
