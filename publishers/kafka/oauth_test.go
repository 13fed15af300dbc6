package kafka

import (
	"encoding/base64"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

// TestOAuthBytes compares the login with that of another library.
func TestOAuthBytes(t *testing.T) {
	t.Parallel()
	for _, extensions := range [][]string{nil, {"identityPoolId=pool-1", "logicalCluster=lkc=1"}} {
		theirs := oauth.Auth{Token: "ab.c-_~+/d==", Extensions: make(map[string]string)}
		for _, e := range extensions {
			name, value, _ := strings.Cut(e, "=")
			theirs.Extensions[name] = value
		}
		mechanism := theirs.AsMechanism()
		_, want, err := mechanism.Authenticate(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		ours := oauthBearer{theirs.Token, extensions}
		_, got, err := ours.Start(t.Context())
		if err != nil || string(got) != string(want) || ours.Name() != mechanism.Name() {
			t.Errorf("%s %q, want %s %q; %v", ours.Name(), got, mechanism.Name(), want, err)
		}
	}
}

// TestLoginOAuth is that each login sends the token of that time, and that what a broker says of it does not show it.
func TestLoginOAuth(t *testing.T) {
	t.Parallel()
	const right, wrong = "right-token", "wrong-token"
	reply := map[string]*saslauthenticate.Response{
		"n,,\x01auth=Bearer " + right + "\x01a=b\x01\x01": {},
		"n,,\x01auth=Bearer " + wrong + "\x01a=b\x01\x01": {AuthBytes: []byte(`{"status":"invalid_token"}`)},
	}
	s := startScripted(t, func(req protocol.Message) (protocol.Message, bool) {
		switch req := req.(type) {
		case *saslhandshake.Request:
			return &saslhandshake.Response{}, req.Mechanism == "OAUTHBEARER"
		case *saslauthenticate.Request:
			if answer := reply[string(req.AuthBytes)]; answer != nil {
				return answer, true
			}
			return &saslauthenticate.Response{ErrorCode: 58, ErrorMessage: "not " + string(req.AuthBytes)}, true
		}
		return nil, true
	})
	var token atomic.Value
	tr := openTransport(t, Config{
		SASLMechanism: mechanismOAuth, OAuthExtensions: []string{"a=b"},
		OAuthToken: func() string { return token.Load().(string) },
	})
	for _, test := range []struct{ token, want string }{
		{wrong, `the broker refuses the token: "{\"status\":\"invalid_token\"}"`},
		{"other-token", "the broker's message holds the password or token"},
	} {
		token.Store(test.token)
		err := fails(t, tr, s.addr, ": login with a token (OAUTHBEARER): ", test.want)
		if strings.Contains(err.Error(), test.token) {
			t.Error(err)
		}
	}
	token.Store(right)
	mustAsk(t, tr, s.addr)
}

// TestLoginOAuthKafka has a real Kafka judge tokens, unsigned ones, and end their sessions: each connection is replaced
// before its session ends.
func TestLoginOAuthKafka(t *testing.T) {
	t.Parallel()
	const listener = "listener.name.sasl_ssl.oauthbearer."
	c := kafkatest.StartFor(t, kafkatest.Options{Secure: true, Properties: map[string]string{
		"sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN,OAUTHBEARER",
		listener + "sasl.jaas.config": "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required " +
			`unsecuredLoginStringClaim_sub="broker";`,
		listener + "connections.max.reauth.ms": "1000",
	}})
	addr := kafkago.TCP(c.SecureBrokers()[0])
	login := func(token func() string, extensions ...string) *transport {
		return openTransport(t, Config{
			TLSCAFile: c.CAFile(), SASLMechanism: mechanismOAuth, OAuthToken: token, OAuthExtensions: extensions,
		})
	}
	var logins atomic.Int32
	tr := login(func() string {
		logins.Add(1)
		return unsignedToken(time.Now().Add(time.Hour))
	})
	for deadline := time.Now().Add(patience); logins.Load() < 4; time.Sleep(10 * time.Millisecond) {
		if mustAsk(t, tr, addr); time.Now().After(deadline) {
			t.Fatalf("%d logins", logins.Load())
		}
	}

	expired := unsignedToken(time.Now().Add(-time.Hour))
	err := fails(t, login(constant(expired)), addr, "login with a token (OAUTHBEARER): ", "invalid_token")
	if strings.Contains(err.Error(), expired) {
		t.Error(err)
	}
	fails(t, login(constant("no-token")), addr, "login with a token (OAUTHBEARER): ")
	// This validator accepts all extensions that are well-formed.
	mustAsk(t, login(constant(unsignedToken(time.Now().Add(time.Hour))), "logicalCluster=lkc-1"), addr)
}

// unsignedToken is a JWT without a signature for User, which Kafka takes unless it is told what to check.
func unsignedToken(expires time.Time) string {
	part := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	return part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`,
		kafkatest.User, expires.Add(-2*time.Hour).Unix(), expires.Unix())) + "."
}
