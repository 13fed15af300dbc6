package fyers_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/fyers"
)

const token = "b4c1-token"

func newBroker(tokens, clientIDs []string) *fyers.Broker {
	return fyers.New(func() fyers.Credentials { return fyers.Credentials{Tokens: tokens, ClientIDs: clientIDs} })
}

func suite() brokertest.Suite {
	return brokertest.Suite{
		Broker: newBroker([]string{"other", token}, nil), PathToken: token, Dir: "testdata",
		Others: []string{"empty", "blank", "empty-object"}, Change: []string{"official"}, Members: members(),
	}
}

// members has the members of the documented postback, then those that the field table, the order book and the socket
// add. It is the table of repeats: a postback is a repeat if nothing but a member with a reason has changed.
func members() map[string]string {
	const marketData = "the instrument's price in a row of the order book, which changes with each request"
	return map[string]string{
		"orderDateTime": "", "id": "", "exchOrdId": "", "side": "", "segment": "", "instrument": "", "productType": "",
		"status": "", "qty": "", "remainingQuantity": "", "filledQty": "", "limitPrice": "", "stopPrice": "", "type": "",
		"discloseQty": "", "dqQtyRem": "", "orderValidity": "", "source": "", "fyToken": "", "offlineOrder": "",
		"message": "", "orderNumStatus": "", "tradedPrice": "", "exchange": "", "clientId": "", "symbol": "",
		"pan": "personal data, which could be guessed from the id",

		"disclosedQty": "", "parentId": "", "orderTag": "", "id_fyers": "", "ex_sym": "", "description": "",
		"slNo": "", "takeProfit": "", "stopLoss": "",
		"ch": marketData, "chp": marketData, "lp": marketData,
	}
}

func TestContract(t *testing.T) { brokertest.Run(t, suite()) }

func TestContractWithClientIDs(t *testing.T) {
	brokertest.Run(t, brokertest.Suite{
		Broker: newBroker([]string{token}, []string{"FX00002", "FX00001"}), PathToken: token, Dir: "testdata/client_ids",
		Others: []string{"empty"}, Change: []string{"official"}, Members: members(),
	})
}

func FuzzNormalize(f *testing.F) { brokertest.FuzzNormalize(f, suite()) }

func FuzzVerify(f *testing.F) {
	brokertest.FuzzVerify(f, suite(), func(p *bridge.Postback) bool {
		return p.PathToken == token || p.PathToken == "other" ||
			p.PathToken == "" && (p.QueryToken == token || p.QueryToken == "other")
	})
}

// TestDeploySample checks that the sample for demos is the one that is tested.
func TestDeploySample(t *testing.T) {
	if !bytes.Equal(read(t, "../../deploy/samples/fyers.json"), read(t, "testdata/genuine/official.json")) {
		t.Error("deploy/samples/fyers.json is not the official sample")
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
