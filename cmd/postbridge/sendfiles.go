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

// fileSource returns a source that repeats the files, signed again with --sign.
func (p *process) fileSource(o *sendOptions) (source, error) {
	files := make([]postback, len(o.files))
	for i, name := range o.files {
		body, err := p.readFile(name)
		if err != nil {
			return nil, err
		}
		if o.sign {
			if body, _, err = sign(body, o.apps); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		files[i] = postback{body: body, order: bodyOrderID(body), unordered: true}
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

// bodyOrderID returns the order id in a body, or "-".
func bodyOrderID(body []byte) string {
	var ids struct {
		Kite  string `json:"order_id"` // and Upstox
		Dhan  string `json:"orderId"`
		Fyers string `json:"id"`
	}
	_ = json.Unmarshal(body, &ids) // a body that is not JSON is sent, too
	return cmp.Or(ids.Kite, ids.Dhan, ids.Fyers, "-")
}

// sign replaces the checksum in a body of Kite by that of the app which the body names, and changes no other byte. If
// that app is not in apps, the first one signs, and its id replaces the other.
func sign(body []byte, apps []kite.Secret) (signed []byte, otherApp bool, err error) {
	values, err := members(body)
	if err != nil {
		return nil, false, fmt.Errorf("cannot be signed: %w", err)
	}
	if _, ok := values["checksum"]; !ok {
		return nil, false, errors.New(`cannot be signed: it has no "checksum" to replace`)
	}
	id := values.text(body, "app_id")
	i := slices.IndexFunc(apps, func(a kite.Secret) bool { return a.AppID == id })
	app := apps[max(i, 0)]
	sum := checksum(values.text(body, "order_id"), values.text(body, "order_timestamp"), app.Secret)
	signed = values.replace(body, "checksum", strconv.Quote(sum))
	if otherApp = i < 0 && id != ""; otherApp {
		values, _ = members(signed) // the same object with other offsets
		signed = values.replace(signed, "app_id", app.AppID)
	}
	return signed, otherApp, nil
}

// offsets holds the start and the end of each value of a JSON object, by name; for a repeated name those of the last.
type offsets map[string][2]int

// members returns the offsets of the values in a body.
func members(body []byte) (offsets, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	found := make(offsets)
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
		found[name.(string)] = [2]int{end - len(value), end} // the decoder accepts no other name
	}
	_, err := d.Token() // the closing brace
	return found, err
}

// replace returns a copy of body with another value of a member.
func (o offsets) replace(body []byte, name, value string) []byte {
	return slices.Concat(body[:o[name][0]], []byte(value), body[o[name][1]:])
}

// text returns a string member unquoted and any other as written; "" if there is none.
func (o offsets) text(body []byte, name string) string {
	value := string(body[o[name][0]:o[name][1]])
	if value == "" || value[0] != '"' {
		return value
	}
	return scan.Unquote(value)
}
