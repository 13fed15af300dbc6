package nats_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/nats"
)

// A wrong secret is an outage like any other, and over once it is right; nobody has to restart anything.
func TestSecretRotated(t *testing.T) {
	t.Parallel()
	const right, wrong = "right-secret", "wrong-secret"
	for name, login := range map[string]struct {
		server func(*server.Options)
		client func(c *nats.Config, secret func() string)
	}{
		"password": {
			func(o *server.Options) { o.Username, o.Password = "edge", right },
			func(c *nats.Config, secret func() string) { c.User, c.Password = "edge", secret },
		},
		"token": {
			func(o *server.Options) { o.Authorization = right },
			func(c *nats.Config, secret func() string) { c.Token = secret },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startServer(t, login.server)
			var secret atomic.Value
			secret.Store(wrong)
			cfg := nats.Config{URL: n.url(), CreateStreams: true}
			login.client(&cfg, func() string { return secret.Load().(string) })
			e := openEdge(t, cfg)
			held := e.offer(order(1))
			e.waitCause("connection", "Authorization")
			if cause := e.cause("connection"); strings.Contains(cause, wrong) {
				t.Errorf("tells the secret: %s", cause)
			}
			undone(t, held)
			secret.Store(right)
			if err := e.wait(held); err != nil {
				t.Error(err)
			}
			e.waitNoCauses()
		})
	}
}

// The server comes up after the publisher, and then the password is wrong: the library has no callback for that.
func TestWrongPasswordAfterBusDown(t *testing.T) {
	t.Parallel()
	n := startServer(t, func(o *server.Options) { o.Username, o.Password = "edge", "right" })
	n.stop()
	e := openEdge(t, nats.Config{URL: n.url(), User: "edge", Password: func() string { return "wrong" }})
	e.waitCause("connection", "refused: start it, or check POSTBRIDGE_NATS_URL")
	n.start(t)
	e.waitCause("connection", "Authorization Violation: check POSTBRIDGE_NATS_USER and POSTBRIDGE_NATS_PASSWORD")
}

func TestURLUserInfo(t *testing.T) {
	t.Parallel()
	n := startServer(t, func(o *server.Options) { o.Username, o.Password = "edge", "secret" })
	e := openEdge(t, nats.Config{URL: strings.Replace(n.url(), "://", "://edge:secret@", 1), CreateStreams: true})
	e.publish(order(1))
	n.stop()
	e.waitCause("connection", "bus at 127.0.0.1")
	if cause := e.cause("connection"); strings.Contains(cause, "secret") {
		t.Errorf("tells the secret: %s", cause)
	}
	n.start(t)
	e.publish(order(2))
}

// A credentials file is read at each connect; one that is missing is an outage.
func TestCredentials(t *testing.T) {
	t.Parallel()
	operator, account, user := newKey(
		t,
		nkeys.CreateOperator,
	), newKey(
		t,
		nkeys.CreateAccount,
	), newKey(
		t,
		nkeys.CreateUser,
	)
	claims := jwt.NewAccountClaims(public(t, account))
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	accountJWT := encode(t, claims, operator)
	system := newKey(t, nkeys.CreateAccount)
	resolver := &server.MemAccResolver{}
	for key, text := range map[nkeys.KeyPair]string{
		account: accountJWT, system: encode(t, jwt.NewAccountClaims(public(t, system)), operator),
	} {
		if err := resolver.Store(public(t, key), text); err != nil {
			t.Fatal(err)
		}
	}
	n := startServer(t, func(o *server.Options) {
		o.TrustedKeys = []string{public(t, operator)}
		o.AccountResolver, o.SystemAccount = resolver, public(t, system)
	})

	file := filepath.Join(t.TempDir(), "edge.creds")
	e := openEdge(t, nats.Config{URL: n.url(), CredsFile: file, CreateStreams: true})
	held := e.offer(order(1))
	e.waitCause("connection", "edge.creds")
	creds, err := jwt.FormatUserConfig(encode(t, jwt.NewUserClaims(public(t, user)), account), seed(t, user))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.wait(held); err != nil {
		t.Error(err)
	}
	e.waitNoCauses()
}

// TestNKey: a seed file that is missing or broken is an outage.
func TestNKey(t *testing.T) {
	t.Parallel()
	key := newKey(t, nkeys.CreateUser)
	n := startServer(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public(t, key)}} })
	file := filepath.Join(t.TempDir(), "edge.nk")
	cfg := nats.Config{URL: n.url(), NKeyFile: file, CreateStreams: true}
	e := openEdge(t, cfg)
	held := e.offer(order(1))
	e.waitCause("connection", "POSTBRIDGE_NATS_NKEY_FILE: nats: open "+file)
	replace(t, file, []byte("not a seed"))
	e.waitCause("connection", "POSTBRIDGE_NATS_NKEY_FILE: ")
	replace(t, file, seed(t, key))
	if err := e.wait(held); err != nil {
		t.Error(err)
	}
	e.waitNoCauses()
	wantResult(t, checkBus(t, cfg), publishers.OK, "can be reached")
	replace(t, file, seed(t, newKey(t, nkeys.CreateUser)))
	wantResult(t, checkBus(t, cfg), publishers.Fail, "refuses the login", "POSTBRIDGE_NATS_NKEY_FILE")
}

// TestNKeyRotated: a new key takes effect once the server wants it.
func TestNKeyRotated(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the next look at the file")
	}
	t.Parallel()
	one, two := newKey(t, nkeys.CreateUser), newKey(t, nkeys.CreateUser)
	n := startServer(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public(t, one)}} })
	file := filepath.Join(t.TempDir(), "edge.nk")
	replace(t, file, seed(t, one))
	e := openEdge(t, nats.Config{URL: n.url(), NKeyFile: file, CreateStreams: true})
	e.publish(order(1))
	n.stop()
	n.options.Nkeys = []*server.NkeyUser{{Nkey: public(t, two)}}
	n.start(t)
	e.waitCause("connection", "Authorization")
	replace(t, file, seed(t, two))
	e.publish(order(2))
	e.waitNoCauses()
	if text := e.log.String(); strings.Contains(text, string(seed(t, one))) {
		t.Errorf("tells the seed: %s", text)
	}
}

// TestInboxPrefix: a user who may subscribe to answers under a prefix of its own only.
func TestInboxPrefix(t *testing.T) {
	t.Parallel()
	user := &server.User{Username: "edge", Permissions: &server.Permissions{
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_edge.>"}},
	}}
	n := startServer(t, func(o *server.Options) { o.Users = []*server.User{user} })
	cfg := nats.Config{URL: n.url(), User: "edge", Password: noPassword, CreateStreams: true}
	without := openEdge(t, cfg)
	without.offer(order(1))
	without.waitCause("permission inbox", "allow subscribing to _INBOX.>, or set POSTBRIDGE_NATS_INBOX_PREFIX")
	without.Close()
	cfg.InboxPrefix = "_INBOX_edge"
	e := openEdge(t, cfg)
	e.publish(old(1, 2)...) // are looked up
	e.waitNoCauses()
	results := checkBus(t, cfg)
	wantWorst(t, results, publishers.Info, "has 1 of the 3 replicas")
	wantResult(t, results, publishers.OK, "can be reached")
}

func seed(t *testing.T, k nkeys.KeyPair) []byte {
	t.Helper()
	s, err := k.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	k, err := create()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func public(t *testing.T, k nkeys.KeyPair) string {
	t.Helper()
	s, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func encode(t *testing.T, claims jwt.Claims, by nkeys.KeyPair) string {
	t.Helper()
	s, err := claims.Encode(by)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
