package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/brokers/kite"
)

// fileSource sends the bodies in files, in turn.
func (p *process) fileSource(o *sendOptions) (func() source, error) {
	files := make([]postback, len(o.files))
	for i, name := range o.files {
		body, err := p.readFile(name)
		if err != nil {
			return nil, ofFile(err)
		}
		if o.sign {
			if body, err = signAgain(body, parseApp(o.secret).Secret); err != nil {
				return nil, fmt.Errorf("send: %s: %w", name, err)
			}
		}
		files[i] = postback{body: body, order: orderIn(body)}
	}
	var taken atomic.Int64
	return func() source {
		return func() postback {
			n := int(taken.Add(1) - 1)
			pb := files[n%len(files)]
			pb.n = n
			return pb
		}
	}, nil
}

func (p *process) readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(p.stdin)
	}
	return os.ReadFile(name)
}

// orderIn is the order id in a body, for the records; - if there is none.
func orderIn(body []byte) string {
	var of struct {
		Kite string `json:"order_id"`
		Dhan string `json:"orderId"`
	}
	_ = json.Unmarshal(body, &of) // bodies that nobody can read are sent, too
	return orElse(of.Kite, orElse(of.Dhan, "-"))
}

// parseApp takes app_id=api_secret apart.
func parseApp(text string) kite.Secret {
	app, secret, _ := strings.Cut(text, "=")
	return kite.Secret{AppID: app, Secret: secret}
}

// signAgain puts the right checksum in the place of the one in a body, and leaves every other byte as it is.
func signAgain(body []byte, secret string) ([]byte, error) {
	k, err := readKiteBody(body)
	if err != nil {
		return nil, fmt.Errorf("cannot be signed: %w", err)
	}
	return splice(body, k.checksum, k.signature(secret)), nil
}

// signAs is signAgain with the secret of the app that the body names. If that is none of the apps, it is the first one's,
// and the body then names that.
func signAs(body []byte, apps []kite.Secret) ([]byte, error) {
	k, err := readKiteBody(body)
	if err != nil {
		return nil, fmt.Errorf("cannot be signed: %w", err)
	}
	app, known := apps[0], false
	for _, a := range apps {
		if !known && a.AppID == k.appID {
			app, known = a, true
		}
	}
	signature := k.signature(app.Secret)
	if known || k.appID == "" {
		return splice(body, k.checksum, signature), nil
	}
	id := appendAppID(nil, app.AppID)
	if k.app.from > k.checksum.from { // what comes later goes first, so that the other stays where it is
		return splice(splice(body, k.app, id), k.checksum, signature), nil
	}
	return splice(splice(body, k.checksum, signature), k.app, id), nil
}

// namesApp reports whether signAs leaves the app id of the body as it is.
func namesApp(body []byte, apps []kite.Secret) bool {
	k, err := readKiteBody(body)
	return err != nil || k.appID == "" || slices.ContainsFunc(apps, func(a kite.Secret) bool { return a.AppID == k.appID })
}

// kiteBody is what signing needs of a body.
type kiteBody struct {
	orderID, at, appID string
	checksum, app      span // of the values
}

// span is where something is in a body.
type span struct{ from, to int }

// splice returns a copy of body with text in the place of one value.
func splice(body []byte, place span, text []byte) []byte {
	return append(append(append([]byte(nil), body[:place.from]...), text...), body[place.to:]...)
}

// readKiteBody finds the members that matter; of a name that is repeated the last.
func readKiteBody(body []byte) (k kiteBody, err error) {
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.PeekKind() != '{' {
		return k, errors.New("it is not a JSON object")
	}
	for begun := false; ; begun = true {
		name, err := d.ReadToken()
		if err != nil {
			return k, err
		}
		if name.Kind() == '}' {
			break
		}
		if !begun {
			continue // the brace
		}
		member := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return k, err
		}
		k.take(member, value, span{int(d.InputOffset()) - len(value), int(d.InputOffset())})
	}
	if k.checksum == (span{}) {
		return k, errors.New(`it has no "checksum" to replace`)
	}
	return k, nil
}

func (k *kiteBody) take(name string, value jsontext.Value, at span) {
	switch name {
	case "order_id":
		k.orderID = literal(value)
	case "order_timestamp":
		k.at = literal(value)
	case "app_id":
		k.appID, k.app = literal(value), at
	case "checksum":
		k.checksum = at
	}
}

// literal is a string without its quotes and escapes, or a number as it is written.
func literal(value jsontext.Value) string {
	if value.Kind() != '"' {
		return string(value)
	}
	text, _ := jsontext.AppendUnquote(nil, value) // was read
	return string(text)
}

// signature is the right checksum, as JSON.
func (k *kiteBody) signature(secret string) []byte {
	return append(appendChecksum([]byte{'"'}, k.orderID, []byte(k.at), secret), '"')
}
