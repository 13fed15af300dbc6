package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync/atomic"

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
	var of struct {
		OrderID   string `json:"order_id"`
		Timestamp string `json:"order_timestamp"`
	}
	if err := json.Unmarshal(body, &of); err != nil {
		return nil, fmt.Errorf("cannot be signed: %w", err)
	}
	place := regexp.MustCompile(`"checksum"\s*:\s*"([^"]*)"`).FindSubmatchIndex(body)
	if place == nil {
		return nil, fmt.Errorf(`cannot be signed: it has no "checksum" to replace`)
	}
	signed := append([]byte(nil), body[:place[2]]...)
	signed = appendChecksum(signed, of.OrderID, []byte(of.Timestamp), secret)
	return append(signed, body[place[3]:]...), nil
}
