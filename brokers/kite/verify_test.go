package kite_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers/kite"
)

const (
	orderID   = "220303000308932"
	orderTime = "2022-03-03 09:24:25"
	userID    = "AB1234"
)

// signed is a body with these fields and this checksum.
func signed(sum string) []byte {
	return object("order_id", quote(orderID), "order_timestamp", quote(orderTime), "user_id", quote(userID),
		"status", `"COMPLETE"`, "checksum", quote(sum))
}

func quote(s string) string { return `"` + s + `"` }

// TestPublishedVectors has the checksums that were published, and one made with the formula of a guide.
func TestPublishedVectors(t *testing.T) {
	for _, v := range []struct {
		name, secret, sum string
		want              string
	}{
		{"the official sample", exampleSecret, "2011845d9348bd6795151bf4258102a03431e3bb12a79c0df73fcb4b7fde4b5d",
			"checksum"},
		{"the text of pull request 17", "API_SECRET",
			"aa389e3f151b51d34809d96299463207da0353105274d9495bad54a38ec227c1", "checksum"},
		{"the guide's formula", "API_SECRET", "02b098235de053c645e1b440bb07ce715faa0705978a019f72602a7e0d119656",
			"403 checksum"},
		{"the other secret", "API_SECRET", "2011845d9348bd6795151bf4258102a03431e3bb12a79c0df73fcb4b7fde4b5d",
			"403 checksum"},
		{"upper case", "API_SECRET", "AA389E3F151B51D34809D96299463207DA0353105274D9495BAD54A38EC227C1", "checksum"},
		{"shortened", "API_SECRET", "aa389e3f151b51d34809d96299463207", "403 checksum"},
		{"no hex", "API_SECRET", strings.Repeat("z", 64), "403 checksum"},
		{"empty", "API_SECRET", "", "403 checksum"},
	} {
		t.Run(v.name, func(t *testing.T) {
			broker := newBroker(kite.OrderTimestamp, nil, kite.Secret{AppID: "1234", Secret: v.secret})
			if got := outcome(broker, "", signed(v.sum)); got != v.want {
				t.Errorf("got %s, want %s", got, v.want)
			}
		})
	}
}

// outcome is how a postback was verified, or status and reason of the refusal.
func outcome(b *kite.Broker, pathToken string, text []byte) string {
	how, err := b.Verify(&bridge.Postback{PathToken: pathToken, QueryToken: "t1", Body: text})
	if r, ok := errors.AsType[*bridge.Refusal](err); ok {
		return strings.Join(
			[]string{map[int]string{400: "400", 401: "401", 403: "403", 404: "404"}[r.Status], r.Reason},
			" ",
		)
	}
	return how
}

func TestVerify(t *testing.T) {
	official := checksum(orderID, orderTime, exampleSecret)
	byUser := checksum(orderID, userID, exampleSecret)
	tokens := []string{"t1", "t2"}
	fields := func(more ...string) []byte {
		return object(
			append(
				[]string{"order_id", quote(orderID), "order_timestamp", quote(orderTime), "user_id", quote(userID)},
				more...)...)
	}
	for _, v := range []struct {
		name    string
		formula kite.Formula
		tokens  []string
		path    string
		body    []byte
		want    string
	}{
		{"no path", "", nil, "", signed(official), "checksum"},
		{"the path of the guide", "", nil, "postback", signed(official), "checksum"},
		{"another path", "", nil, "t1", signed(official), "404 route"},
		{"token and checksum", "", tokens, "t2", signed(official), "checksum+token"},
		{"no token", "", tokens, "", signed(official), "401 token"},
		{"the path of the guide is no token", "", tokens, "postback", signed(official), "401 token"},
		{"wrong token", "", tokens, "t3", signed(official), "401 token"},
		{"token, wrong checksum", "", tokens, "t1", signed(byUser), "403 checksum"},
		{"token, no checksum", "", tokens, "t1", fields(), "403 checksum"},
		{"token, an array", "", tokens, "t1", []byte("[" + string(signed(official)) + "]"), "403 checksum"},
		{"token, not JSON", "", tokens, "t1", []byte("order_id=1"), "token"},
		{"token, empty", "", tokens, "t1", nil, "token"},
		{"not JSON", "", nil, "", []byte("order_id=1"), "400 not_json"},
		{"empty", "", nil, "", nil, "400 not_json"},
		{"two objects", "", nil, "", append(signed(official), signed(official)...), "400 not_json"},
		{"a string", "", nil, "", []byte(`"order"`), "403 checksum"},

		{"user id formula off", "", nil, "", signed(byUser), "403 checksum"},
		{"user id formula", kite.UserID, nil, "", signed(byUser), "checksum:user_id"},
		{"user id formula and token", kite.UserID, tokens, "t1", signed(byUser), "checksum:user_id+token"},
		{"official formula beside it", kite.UserID, nil, "", signed(official), "checksum"},
		{"neither", kite.UserID, nil, "", signed(checksum(orderID, exampleSecret)), "403 checksum"},

		{"known app", "", nil, "", fields("app_id", "1234", "checksum", quote(official)), "checksum"},
		{"known app as a string", "", nil, "", fields("app_id", `"1234"`, "checksum", quote(official)), "checksum"},
		{"app null", "", nil, "", fields("app_id", "null", "checksum", quote(official)), "checksum"},
		{"unknown app", "", nil, "", fields("app_id", "99", "checksum", quote(official)), "403 app_id"},

		{"order id in an object", "", nil, "", object("order_id", `{"a":1}`, "order_timestamp", quote(orderTime),
			"checksum", quote(checksum("", orderTime, exampleSecret))), "403 checksum"},
		{"order id empty", "", nil, "", object("order_id", `""`, "order_timestamp", quote(orderTime), "checksum",
			quote(checksum("", orderTime, exampleSecret))), "403 checksum"},
		{"order time missing", "", nil, "", object("order_id", quote(orderID), "checksum", quote(checksum(orderID, "",
			exampleSecret))), "403 checksum"},
		{"user id missing", kite.UserID, nil, "", object("order_id", quote(orderID), "checksum",
			quote(checksum(orderID, "", exampleSecret))), "403 checksum"},
		{"order id a number", "", nil, "", object("order_id", orderID, "order_timestamp", quote(orderTime),
			"checksum", quote(official)), "checksum"},
		{"names of another case", "", nil, "", object("Order_id", quote(orderID), "order_timestamp", quote(orderTime),
			"checksum", quote(official)), "403 checksum"},
		{"escaped name", "", nil, "", object(`order\u005fid`, quote(orderID), "order_timestamp", quote(orderTime),
			"checksum", quote(official)), "checksum"},

		{"checksum twice", "", nil, "", fields("checksum", quote(official), "checksum", quote(official)),
			"403 repeated_key"},
		{"order id twice", "", nil, "", fields("checksum", quote(official), "order_id", quote(orderID)),
			"403 repeated_key"},
		{"order time in two cases", "", nil, "", fields("checksum", quote(official), "ORDER_TIMESTAMP",
			quote(orderTime)), "403 repeated_key"},
		{"checksum with a Kelvin sign", "", nil, "", fields("checksum", quote(official), "chec\u212asum",
			quote(official)), "403 repeated_key"},
		{"user id twice, not covered", "", nil, "", fields("checksum", quote(official), "User_ID", `"X"`), "checksum"},
		{"user id twice, covered", kite.UserID, nil, "", fields("checksum", quote(byUser), "User_ID", `"X"`),
			"403 repeated_key"},
		{"status twice", "", nil, "", fields("checksum", quote(official), "status", `"OPEN"`, "status", `"COMPLETE"`),
			"checksum"},
		{"order id twice, deeper", "", nil, "", fields("checksum", quote(official), "meta",
			`{"order_id":1,"order_id":2}`), "checksum"},
	} {
		t.Run(v.name, func(t *testing.T) {
			if got := outcome(newBroker(v.formula, v.tokens, exampleApp()...), v.path, v.body); got != v.want {
				t.Errorf("got %s, want %s\n%s", got, v.want, v.body)
			}
		})
	}
}

// TestRotation changes the secret of an app while postbacks arrive: both are live for a while.
func TestRotation(t *testing.T) {
	live := []kite.Secret{{AppID: "1234", Secret: "old"}}
	broker := kite.New(kite.Config{Credentials: func() kite.Credentials { return kite.Credentials{Secrets: live} }})
	withOld, withNew := signed(checksum(orderID, orderTime, "old")), signed(checksum(orderID, orderTime, "new"))
	check := func(wantOld, wantNew string) {
		t.Helper()
		if got := outcome(broker, "", withOld); got != wantOld {
			t.Errorf("signed with the old secret: %s, want %s", got, wantOld)
		}
		if got := outcome(broker, "", withNew); got != wantNew {
			t.Errorf("signed with the new secret: %s, want %s", got, wantNew)
		}
	}
	check("checksum", "403 checksum")
	live = append(live, kite.Secret{AppID: "1234", Secret: "new"})
	check("checksum", "checksum")
	live = live[1:]
	check("403 checksum", "checksum")
}

// TestSecretOfAnotherApp checks that an app's secret proves nothing for another app, and that a body which names no
// app is tried against all.
func TestSecretOfAnotherApp(t *testing.T) {
	broker := newBroker("", nil, kite.Secret{AppID: "1", Secret: "one"}, kite.Secret{AppID: "2", Secret: "two"})
	body := func(app string) []byte {
		return object("order_id", quote(orderID), "order_timestamp", quote(orderTime), "app_id", app,
			"checksum", quote(checksum(orderID, orderTime, "two")))
	}
	for app, want := range map[string]string{"2": "checksum", "1": "403 checksum", "null": "checksum",
		"3": "403 app_id"} {
		if got := outcome(broker, "", body(app)); got != want {
			t.Errorf("app %s: %s, want %s", app, got, want)
		}
	}
}

// TestUnknownApp checks that the remedy for an unknown app names it and the setting, and that nothing else of the body
// gets into it at length or as it is.
func TestUnknownApp(t *testing.T) {
	broker := newBroker("", nil, exampleApp()...)
	for _, test := range []struct{ app, want string }{
		{"99", "if it is your app, set POSTBRIDGE_KITE_SECRETS=99=<api_secret>, beside those of other apps"},
		{`"99"`, "if it is your app, set POSTBRIDGE_KITE_SECRETS=99=<api_secret>, beside those of other apps"},
		{strings.Repeat("9", 21), `none: Kite's app ids are numbers, and this one begins with "99999999999999999999"`},
		{`"1=s\n\u001b[31m\u202e ` + strings.Repeat("x", 99) + `"`,
			`none: Kite's app ids are numbers, and this one begins with "1=s\n\x1b[31m\u202e xxxxxxxxx"`},
	} {
		_, err := broker.Verify(&bridge.Postback{Body: object("order_id", quote(orderID), "app_id", test.app)})
		var no *bridge.Refusal
		if !errors.As(err, &no) || no.Reason != "app_id" || no.Remedy != test.want {
			t.Errorf("app %s: %+v, want the remedy %s", test.app, no, test.want)
		}
		if strings.ContainsAny(err.Error(), "19") {
			t.Errorf("the answer tells the app: %v", err)
		}
	}
}

// TestGuideBody posts the seven fields of a third-party guide's own test, which has no app id and no time.
func TestGuideBody(t *testing.T) {
	body := read(t, "testdata/user_id/genuine/guide-minimal.json")
	if got := outcome(newBroker(kite.UserID, nil, exampleApp()...), "postback", body); got != "checksum:user_id" {
		t.Errorf("with the formula of the guide: %s", got)
	}
	if got := outcome(newBroker(kite.OrderTimestamp, nil, exampleApp()...), "postback", body); got != "403 checksum" {
		t.Errorf("without the formula of the guide: %s", got)
	}
}

// TestRefusalTellsNothing checks that no refusal has a secret, a token or a checksum in it.
func TestRefusalTellsNothing(t *testing.T) {
	right := checksum(orderID, orderTime, exampleSecret)
	broker := newBroker(kite.UserID, []string{"the-token"}, exampleApp()...)
	for _, p := range []*bridge.Postback{
		{PathToken: "x", Body: signed(right)},
		{PathToken: "the-token", Body: signed("00")},
		{PathToken: "the-token", Body: object("app_id", "7")},
		{PathToken: "the-token", Body: []byte("[]")},
	} {
		_, err := broker.Verify(p)
		if err == nil {
			t.Fatal("accepted")
		}
		for _, hidden := range []string{exampleSecret, "the-token", right, "1234"} {
			if strings.Contains(err.Error(), hidden) {
				t.Errorf("%q tells %q", err, hidden)
			}
		}
	}
}

// TestRecut refuses a genuine checksum whose digits were moved from the order id to the time, or back: it would prove
// another order.
func TestRecut(t *testing.T) {
	genuine := string(read(t, "testdata/genuine/official.json"))
	for _, cut := range [][2]string{{"22030300030893", "22022-03-03 09:24:25"}, {"2203030003089322",
		"022-03-03 09:24:25"}} {
		body := strings.Replace(genuine, "220303000308932", cut[0], 1)
		body = strings.Replace(body, `"order_timestamp": "2022-03-03 09:24:25"`, `"order_timestamp":"`+cut[1]+`"`, 1)
		body = strings.Replace(body, `"order_timestamp":"2022-03-03 09:24:25"`, `"order_timestamp":"`+cut[1]+`"`, 1)
		if !strings.Contains(body, cut[1]) {
			t.Fatal("the sample has another form")
		}
		if how, err := newBroker("", nil).Verify(&bridge.Postback{Body: []byte(body)}); err == nil {
			t.Errorf("%q and %q are accepted, by %s", cut[0], cut[1], how)
		}
	}
}
