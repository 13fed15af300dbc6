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

	"github.com/postbridge/postbridge/bridge/scan"
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
	d := json.NewDecoder(bytes.NewReader(body))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	found := make(map[string]span)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		end := int(d.InputOffset())
		found[name.(string)] = span{end - len(value), end} // the decoder accepts no other name
	}
	_, err := d.Token() // the closing brace
	return found, err
}

// literal returns a string without its quotes and escapes, and a number as it is written.
func literal(value []byte) string {
	if len(value) == 0 || value[0] != '"' {
		return string(value)
	}
	return scan.Unquote(string(value))
}
