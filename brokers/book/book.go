// Package book reads the order books of brokers: one request per account for all orders of the day.
package book

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/event"
	"github.com/postbridge/postbridge/brokers/body"
)

// Errors of Client.Read and Pass.Run, besides those of the context.
var (
	// ErrToken means that the access token is invalid or has expired. A retry with the same token fails, too.
	ErrToken = errors.New("the broker refuses the access token")
	// ErrRateLimited means that the broker counts too many requests of the account.
	ErrRateLimited = errors.New("the broker limits the rate of requests")
	// ErrOutage means that the broker cannot be reached, or cannot answer now.
	ErrOutage = errors.New("the broker does not answer")
	// ErrNotUnderstood means that the broker documents no such response. The error is an *Unexpected.
	ErrNotUnderstood = errors.New("the broker's response is not understood")
	// ErrBus means that a bus cannot be read or does not store an event.
	ErrBus = errors.New("the bus does not answer")
)

// Unexpected is a response that is not understood. It wraps ErrNotUnderstood.
type Unexpected struct {
	// Status is the HTTP status.
	Status int
	// Body is the beginning of the response, 64 KiB at most. It may name the account.
	Body []byte
	// Err is why the response cannot be decoded; nil if it can.
	Err error
}

// Error does not show the body, which may name the account.
func (u *Unexpected) Error() string {
	text := fmt.Sprintf("%v (HTTP status %d)", ErrNotUnderstood, u.Status)
	if u.Err != nil {
		text += ": " + u.Err.Error()
	}
	return text
}

// Unwrap returns ErrNotUnderstood.
func (u *Unexpected) Unwrap() error { return ErrNotUnderstood }

// Account is one account at a broker.
type Account struct {
	// UserID is the broker's id of the user, for rows that name none.
	UserID string
	// Credential is the access token in the form that Book.Authorize expects. It is a secret.
	Credential string
}

// Book is the order book of a broker: how it is requested and what its responses mean. It does no I/O.
type Book struct {
	// Broker normalizes the rows.
	Broker bridge.Broker
	// URL is the address of the broker's REST API, without a slash at its end, and Path that of the order book there.
	URL, Path string
	// Authorize sets the headers of a request that identify the account.
	Authorize func(h http.Header, a Account)
	// MaxRateLimits is how often in a day an account may be rate limited before the broker blocks it for the rest of the
	// day; 0 is without limit.
	MaxRateLimits int
	// Rows is the member with the rows, if the response is an object. A response that is an array is the rows.
	Rows string
	// Failure returns the meaning of a response that has no rows: an error that wraps ErrToken, ErrRateLimited,
	// ErrOutage or ErrNotUnderstood. It returns nil for a success and for every other response. Status 429 and 5xx
	// need no Failure.
	Failure func(status int, m Members) error
}

// Event returns the event of a row. It refers to the bytes of the row.
func (b Book) Event(a Account, row []byte, now time.Time) *event.Event {
	e := bridge.Normalize(b.Broker, &bridge.Postback{Body: row}, event.SourceOrderBook, now)
	e.Source = event.SourceOrderBook
	e.UserID = cmp.Or(e.UserID, a.UserID)
	return e
}

// Members are the members of a response that is an object, without the rows.
type Members map[string]json.RawMessage

// Text returns the text of a string or the digits of a number, and "" for any other value.
func (m Members) Text(name string) string { return body.Value(m[name]).Text() }

// Client requests order books.
type Client struct {
	// HTTP has the timeouts.
	HTTP *http.Client
	// UserAgent names this program and its version.
	UserAgent string
	// MaxBytes limits the size of a response, in bytes.
	MaxBytes int64
}

// Read requests the order book of an account and calls row for each row, a JSON value that is valid until row returns.
// Memory use does not depend on the number of rows. After an error the rows before it are valid, but the book is not
// complete.
func (c *Client) Read(ctx context.Context, b Book, a Account, row func(row []byte)) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+b.Path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", c.UserAgent)
	b.Authorize(request.Header, a)
	response, err := c.HTTP.Do(request)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOutage, err)
	}
	defer response.Body.Close()

	beginning := &prefix{limit: maxBody}
	text := &valueReader{r: io.TeeReader(http.MaxBytesReader(nil, response.Body, c.MaxBytes), beginning)}
	d := decoder{text: text, json: json.NewDecoder(text), rows: b.Rows, row: row, members: make(Members)}
	if response.StatusCode != http.StatusOK {
		d.row = func([]byte) {}
	}
	return b.outcome(response.StatusCode, &d, d.decode(), beginning)
}

// outcome returns the meaning of a response; err is that of the decoder.
func (b Book) outcome(status int, d *decoder, err error, beginning *prefix) error {
	failure := b.Failure(status, d.members)
	switch {
	case failure != nil && !errors.Is(failure, ErrNotUnderstood):
		return failure
	case status == http.StatusTooManyRequests:
		return ErrRateLimited
	case status >= http.StatusInternalServerError:
		return fmt.Errorf("%w: HTTP status %d", ErrOutage, status)
	case failure == nil && status == http.StatusOK && err == nil && d.found:
		return nil
	case status == http.StatusOK && interrupted(err):
		return fmt.Errorf("%w: %w", ErrOutage, err)
	}
	return &Unexpected{status, beginning.text, err}
}

// interrupted reports whether the connection ended within the response.
func interrupted(err error) bool {
	_, syntax := errors.AsType[*json.SyntaxError](err)
	_, large := errors.AsType[*http.MaxBytesError](err)
	return err != nil && !syntax && !large && !errors.Is(err, errNoObject)
}

// errNoObject means that a response is JSON, but neither an object nor an array.
var errNoObject = errors.New("neither an object nor an array")

// decoder decodes one response.
type decoder struct {
	text *valueReader
	json *json.Decoder
	rows string
	row  func(row []byte)

	members Members
	found   bool // the rows were there, perhaps none
}

func (d *decoder) decode() error {
	first, err := d.json.Token()
	switch {
	case err != nil:
		return err
	case first == json.Delim('['):
		return d.array()
	case first != json.Delim('{'):
		return errNoObject
	}
	for d.json.More() {
		name, err := d.json.Token()
		if err != nil {
			return err
		}
		if err := d.member(name.(string)); err != nil {
			return err
		}
	}
	_, err = d.json.Token()
	return err
}

// member decodes one member of the response.
func (d *decoder) member(name string) error {
	if name != d.rows {
		var value json.RawMessage
		d.text.n = 0
		err := d.json.Decode(&value)
		d.members[name] = value
		return err
	}
	first, err := d.json.Token()
	switch {
	case err != nil:
		return err
	case first == json.Delim('['):
		return d.array()
	case first != nil: // null is an empty book, unless Failure knows better
		return errNoObject
	}
	d.found = true
	return nil
}

// array decodes the rows.
func (d *decoder) array() error {
	d.found = true
	var row json.RawMessage
	for d.json.More() {
		d.text.n = 0
		if err := d.json.Decode(&row); err != nil {
			return err
		}
		d.row(row)
	}
	_, err := d.json.Token()
	return err
}

// maxValue limits a row, and each other member of a response, in bytes: the decoder holds one at a time.
const maxValue = 1 << 20

// valueReader limits what is read for one value.
type valueReader struct {
	r io.Reader
	n int // since the value began
}

// Read implements io.Reader. Its error is an *http.MaxBytesError if the value is too large.
func (v *valueReader) Read(b []byte) (int, error) {
	if v.n > maxValue {
		return 0, &http.MaxBytesError{Limit: maxValue}
	}
	n, err := v.r.Read(b)
	v.n += n
	return n, err
}

// maxBody is how much of a response is kept for an Unexpected, in bytes.
const maxBody = 64 << 10

// prefix is a writer that keeps the first bytes.
type prefix struct {
	limit int
	text  []byte
}

// Write implements io.Writer. It never fails.
func (p *prefix) Write(b []byte) (int, error) {
	p.text = append(p.text, b[:min(len(b), p.limit-len(p.text))]...)
	return len(b), nil
}
