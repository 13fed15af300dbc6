package kite_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/kite"
)

// exampleSecret made the checksum of the official sample (zerodha/kiteconnect-mocks, pull request 17). Every body in
// testdata/genuine is signed with it. The series-2026 bodies follow a capture of one order that was placed, modified
// and cancelled.
const exampleSecret = "0hdv7iw5examplesecret"

func exampleApp() []kite.Secret { return []kite.Secret{{AppID: "1234", Secret: exampleSecret}} }

func newBroker(formula kite.Formula, tokens []string, secrets ...kite.Secret) *kite.Broker {
	return kite.New(kite.Config{
		Checksum:    formula,
		Credentials: func() kite.Credentials { return kite.Credentials{Secrets: secrets, Tokens: tokens} },
	})
}

func suite() brokertest.Suite {
	broker := newBroker(kite.OrderTimestamp, nil, exampleApp()...)
	return brokertest.Suite{Broker: broker, Dir: "testdata", Change: []string{"official",
		"rejected-19-digit-id"}, Members: members()}
}

// members are those of https://kite.trade/docs/connect/v3/postbacks, and those that only the order book and the
// ticker's socket have. The frames are testdata/genuine/series-2026-*.
func members() map[string]string {
	return map[string]string{
		"checksum":          "it says no more than the order id and the order time, which it is made of",
		"guid":              "another one in frames 1 and 2, and in 4 and 5, which are one state each",
		"pending_quantity":  "1 in frame 4 and 0 in frame 5, of an order of which 1 is cancelled in both",
		"unfilled_quantity": "0 while 900 are pending in a capture of 2022, and missing in older bodies",

		"user_id": "", "app_id": "", "placed_by": "", "order_id": "", "exchange_order_id": "", "parent_order_id": "",
		"status":         "",
		"status_message": "", "status_message_raw": "", "order_timestamp": "", "exchange_update_timestamp": "",
		"exchange_timestamp": "", "variety": "", "exchange": "", "tradingsymbol": "", "instrument_token": "",
		"order_type":       "",
		"transaction_type": "", "validity": "", "product": "", "quantity": "", "disclosed_quantity": "", "price": "",
		"trigger_price": "", "average_price": "", "filled_quantity": "", "cancelled_quantity": "",
		"market_protection": "",
		"meta":              "", "tag": "",

		"account_id": "", "tags": "", "modified": "", "validity_ttl": "", "auction_number": "", "terminal_id": "",
	}
}

func TestContract(t *testing.T) { brokertest.Run(t, suite()) }

func TestContractWithToken(t *testing.T) {
	broker := newBroker(kite.OrderTimestamp, []string{"old-token", "new-token"}, exampleApp()...)
	brokertest.Run(t, brokertest.Suite{
		Broker: broker, PathToken: "new-token", Dir: "testdata/token", Change: []string{"official"}, Members: members(),
	})
}

func TestContractWithUserIDFormula(t *testing.T) {
	broker := newBroker(kite.UserID, nil, exampleApp()...)
	brokertest.Run(t, brokertest.Suite{
		Broker: broker, Dir: "testdata/user_id", Change: []string{"guide-minimal"}, Members: members(),
	})
}

func FuzzNormalize(f *testing.F) { brokertest.FuzzNormalize(f, suite()) }

func FuzzVerify(f *testing.F) { brokertest.FuzzVerify(f, suite(), checksumFits) }

// checksumFits is the official formula, written with what the standard library has.
func checksumFits(p *bridge.Postback) bool {
	dec := json.NewDecoder(bytes.NewReader(p.Body))
	dec.UseNumber()
	var members map[string]any
	if dec.Decode(&members) != nil {
		return false
	}
	text := func(name string) string {
		switch v := members[name].(type) {
		case string:
			return v
		case json.Number:
			return v.String()
		}
		return ""
	}
	return text("order_id") != "" && text("order_timestamp") != "" &&
		strings.EqualFold(checksum(text("order_id"), text("order_timestamp"), exampleSecret), text("checksum"))
}

func checksum(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "")))
	return hex.EncodeToString(sum[:])
}

// TestDeploySample holds the sample that the demos post to the one that is tested.
func TestDeploySample(t *testing.T) {
	if !bytes.Equal(read(t, "../../deploy/samples/kite.json"), read(t, "testdata/genuine/official.json")) {
		t.Error("deploy/samples/kite.json is not the official sample")
	}
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// object builds a body from names and values, each value as it stands in JSON.
func object(namesAndValues ...string) []byte {
	var members []string
	for pair := range slices.Chunk(namesAndValues, 2) {
		members = append(members, `"`+pair[0]+`":`+pair[1])
	}
	return []byte("{" + strings.Join(members, ",") + "}")
}
