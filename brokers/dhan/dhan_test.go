package dhan_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/dhan"
)

const token = "e7f3-token"

func newBroker(tokens, clientIDs []string) *dhan.Broker {
	return dhan.New(func() dhan.Credentials { return dhan.Credentials{Tokens: tokens, ClientIDs: clientIDs} })
}

func suite() brokertest.Suite {
	broker := newBroker([]string{"other", token}, nil)
	return brokertest.Suite{
		Broker: broker, PathToken: token, Dir: "testdata", Change: []string{"official"}, Members: members(),
	}
}

// members are those of https://dhanhq.co/docs/v2/postback, and then those that its field table, the order API and the
// programs of others have. A change of any is published.
func members() map[string]string {
	return map[string]string{
		"dhanClientId": "", "orderId": "", "correlationId": "", "orderStatus": "", "transactionType": "",
		"exchangeSegment": "",
		"productType":     "", "orderType": "", "validity": "", "tradingSymbol": "", "securityId": "", "quantity": "",
		"disclosedQuantity": "", "price": "", "triggerPrice": "", "afterMarketOrder": "", "boProfitValue": "",
		"boStopLossValue": "", "legName": "", "createTime": "", "updateTime": "", "exchangeTime": "",
		"drvExpiryDate": "",
		"drvOptionType": "", "drvStrikePrice": "", "omsErrorCode": "", "omsErrorDescription": "", "filled_qty": "",
		"algoId": "",

		"omserroeCode": "", "exchangeOrderId": "", "remainingQuantity": "", "filledQty": "", "averageTradedPrice": "",
		"averagePrice": "", "tradedPrice": "", "userNote": "",
	}
}

func TestContract(t *testing.T) { brokertest.Run(t, suite()) }

func TestContractWithClientIDs(t *testing.T) {
	broker := newBroker([]string{token}, []string{"1000000001", "1000000003"})
	brokertest.Run(t, brokertest.Suite{
		Broker: broker, PathToken: token, Dir: "testdata/client_ids", Change: []string{"official"}, Members: members(),
	})
}

func FuzzNormalize(f *testing.F) { brokertest.FuzzNormalize(f, suite()) }

func FuzzVerify(f *testing.F) {
	brokertest.FuzzVerify(f, suite(), func(p *bridge.Postback) bool {
		return p.PathToken == token || p.PathToken == "other" ||
			p.PathToken == "" && (p.QueryToken == token || p.QueryToken == "other")
	})
}

// TestDeploySample holds the sample that the demos post to the one that is tested.
func TestDeploySample(t *testing.T) {
	if !bytes.Equal(read(t, "../../deploy/samples/dhan.json"), read(t, "testdata/genuine/official.json")) {
		t.Error("deploy/samples/dhan.json is not the official sample")
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
