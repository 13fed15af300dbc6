package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postbridge/postbridge/brokers/kite"
)

// fileSource returns a source of the files in turn, which are signed anew with --sign.
func (p *process) fileSource(o *sendOptions) (source, error) {
	files := make([]postback, len(o.files))
	for i, name := range o.files {
		body, err := p.readFile(name)
		if err == nil && o.sign {
			if body, err = sign(body, []kite.Secret{{Secret: o.app().Secret}}); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
		}
		if err != nil {
			return nil, err
		}
		files[i] = postback{body: body, order: orderIn(body), unordered: true}
	}
	n := -1
	return func(int) (postback, error) {
		n++
		pb := files[n%len(files)]
		pb.n = n
		return pb, nil
	}, nil
}

func (p *process) readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(p.stdin)
	}
	return os.ReadFile(name)
}

// orderIn returns the order id in a body, or - without one: a body that is not JSON is sent, too.
func orderIn(body []byte) string {
	var of struct {
		Kite string `json:"order_id"`
		Dhan string `json:"orderId"`
	}
	_ = json.Unmarshal(body, &of) // see above
	return cmp.Or(of.Kite, of.Dhan, "-")
}

// sign replaces the checksum in a body of Kite's, and no other byte, by that of the app which the body names. If that
// is none of the apps, the first one signs, and its id replaces the other. An app without an id signs for every id.
func sign(body []byte, apps []kite.Secret) ([]byte, error) {
	values, err := members(body)
	if err != nil {
		return nil, fmt.Errorf("cannot be signed: %w", err)
	}
	at, ok := values["checksum"]
	if !ok {
		return nil, errors.New(`cannot be signed: it has no "checksum" to replace`)
	}
	text := func(name string) string { return literal(body[values[name].from:values[name].to]) }
	app := apps[0]
	known := slices.IndexFunc(apps, func(a kite.Secret) bool { return a.AppID == "" || a.AppID == text("app_id") })
	if known >= 0 {
		app = apps[known]
	}
	other := known < 0 && text("app_id") != ""
	body = splice(body, at, strconv.Quote(checksum(text("order_id"), text("order_timestamp"), app.Secret)))
	if other {
		values, _ = members(body) // it is the same object
		body = splice(body, values["app_id"], app.AppID)
	}
	return body, nil
}

// appIn returns the app id that a body names.
func appIn(body []byte) string {
	values, _ := members(body)
	return literal(body[values["app_id"].from:values["app_id"].to])
}

// span is where a value is in a body.
type span struct{ from, to int }

// splice returns a copy of body in which text replaces a value.
func splice(body []byte, at span, text string) []byte {
	return slices.Concat(body[:at.from], []byte(text), body[at.to:])
}

// members finds the values of a JSON object by their names. Of a repeated name it is the last.
func members(body []byte) (map[string]span, error) {
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if token, err := d.ReadToken(); err != nil || token.Kind() != '{' {
		return nil, errors.New("it is not a JSON object")
	}
	for found := make(map[string]span); ; {
		token, err := d.ReadToken()
		if err != nil || token.Kind() == '}' {
			return found, err
		}
		name := token.String() // before the next read
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		end := int(d.InputOffset())
		found[name] = span{end - len(value), end}
	}
}

// literal returns a string without its quotes and escapes, and a number as it is written.
func literal(value jsontext.Value) string {
	if value.Kind() != '"' {
		return string(value)
	}
	text, _ := jsontext.AppendUnquote(nil, value) // it was read without an error
	return string(text)
}
