package upstox_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/upstox"
)

const token = "b81d-token"

func newBroker(tokens, userIDs []string) *upstox.Broker {
	return upstox.New(func() upstox.Credentials { return upstox.Credentials{Tokens: tokens, UserIDs: userIDs} })
}

// suite has the official samples of testdata/genuine, with a user id where they have asterisks: official and gtt-order
// of the webhook page, official-2023-cancelled-amo of an earlier edition of it, holding and position of the portfolio
// stream, and book-* of the order book, whose rows have the same members. The others are official, changed.
func suite() brokertest.Suite {
	return brokertest.Suite{
		Broker: newBroker([]string{"other", token}, nil), PathToken: token, Dir: "testdata",
		Change: []string{"official", "gtt-order"}, Members: members(),
		Others: []string{"gtt-order", "holding", "position"},
	}
}

// members has those of https://upstox.com/developer/api-documentation/webhook. A change of any is published: no member
// is known to differ between two postbacks of one state.
func members() map[string]string {
	return map[string]string{
		"update_type": "", "user_id": "", "userId": "", "exchange": "", "instrument_token": "", "instrument_key": "",
		"trading_symbol": "", "tradingsymbol": "", "product": "", "order_type": "", "average_price": "", "price": "",
		"trigger_price": "", "quantity": "", "disclosed_quantity": "", "pending_quantity": "", "transaction_type": "",
		"order_ref_id": "", "exchange_order_id": "", "parent_order_id": "", "validity": "", "status": "", "is_amo": "",
		"variety": "", "tag": "", "exchange_timestamp": "", "status_message": "", "order_id": "",
		"order_request_id": "", "order_timestamp": "", "filled_quantity": "", "guid": "", "placed_by": "",
		"status_message_raw": "",
	}
}

func TestContract(t *testing.T) { brokertest.Run(t, suite()) }

func TestContractWithUserIDs(t *testing.T) {
	s := suite()
	s.Broker, s.Dir = newBroker([]string{token}, []string{"7ABC11", "7ABC12"}), "testdata/user_ids"
	s.Others = []string{"gtt-order", "position"}
	brokertest.Run(t, s)
}

func FuzzNormalize(f *testing.F) { brokertest.FuzzNormalize(f, suite()) }

func FuzzVerify(f *testing.F) {
	brokertest.FuzzVerify(f, suite(), func(p *bridge.Postback) bool {
		return p.PathToken == token || p.PathToken == "other" ||
			p.PathToken == "" && (p.QueryToken == token || p.QueryToken == "other")
	})
}

// TestDeploySample compares the sample that the demos post with the one that is tested.
func TestDeploySample(t *testing.T) {
	if !bytes.Equal(read(t, "../../deploy/samples/upstox.json"), read(t, "testdata/genuine/official.json")) {
		t.Error("deploy/samples/upstox.json is not the official sample")
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
