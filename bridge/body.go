package bridge

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A body is read before it is verified. A small one, as all known postbacks are, is read into memory that each request
// has. All larger ones share a budget.
const (
	smallBody = 8 << 10
	// leastBudget is the budget in bytes, unless four of the largest bodies are more.
	leastBudget = 16 << 20
	// budgetWait is how long a body waits for its share. Every holder ends within readTimeout.
	budgetWait = 2 * time.Second
)

// intake is the memory of one request while it is received. Intakes are pooled.
type intake struct {
	body     [smallBody + 1]byte // as it arrives, if it is small
	decoded  []byte              // smallBody+1 bytes; nil until needed
	taken    int64               // bytes acquired from the budget
	postback Postback
	record   []byte
}

// release returns an intake to the pool, and its share to the budget. An intake with a share is not pooled: it has
// grown. A nil intake is released already.
func (r *receiver) release(in *intake) {
	switch {
	case in == nil:
	case in.taken > 0:
		r.budget.give(in.taken)
	default:
		r.intakes.Put(in)
	}
}

// readBody reads the body, decodes it and skips a byte order mark. No more than maxBody bytes are read or decoded. It
// ignores the Content-Type: some brokers send a wrong one. With keepUnreadable it reads every body, and returns the
// part that arrived together with the answer that refuses it.
func (r *receiver) readBody(
	w http.ResponseWriter, req *http.Request, in *intake, keepUnreadable bool,
) ([]byte, *answer) {
	gzipped, ok := contentCoding(req.Header)
	var no *answer
	switch {
	case !ok:
		w.Header().Set("Accept-Encoding", "gzip")
		no = refuse(http.StatusUnsupportedMediaType, "encoding", "the only Content-Encoding accepted is gzip")
	case req.ContentLength > r.maxBody:
		w.Header().Set("Connection", "close")
		no = tooLarge()
	}
	if no != nil && !keepUnreadable {
		return nil, no
	}
	from, body := req.Body, in.body[:]
	if req.ContentLength < 0 || req.ContentLength > r.maxBody { // net/http reads no more than a length that is given
		from = http.MaxBytesReader(w, req.Body, r.maxBody)
	}
	n, err := fill(body, from)
	if err == nil {
		size := r.maxBody
		if req.ContentLength >= 0 {
			size = min(req.ContentLength, r.maxBody)
		}
		share := size + 1
		if gzipped {
			share += r.maxBody + 1 // a body that holds its share never waits for more
		}
		if !r.budget.take(share) {
			return nil, busy()
		}
		in.taken = share
		body = make([]byte, size+1)
		copy(body, in.body[:])
		var more int
		more, err = fill(body[n:], from)
		n += more
	}
	switch {
	case errors.Is(err, io.EOF):
		_ = req.Body.Close() // net/http would look for more in a body that is open
	case err == nil || isTooLong(err):
		no = tooLarge()
	default:
		no = refuse(http.StatusBadRequest, "incomplete", "the body did not arrive whole")
	}
	body = body[:n]
	if gzipped && n > 0 && no == nil {
		var decoded []byte
		if decoded, no = r.decode(in, body); no == nil {
			body = decoded
		}
	}
	if no != nil {
		return body, no
	}
	return bytes.TrimPrefix(body, []byte("\uFEFF")), nil
}

// isTooLong reports whether an error is that of an http.MaxBytesReader.
func isTooLong(err error) bool {
	_, ok := errors.AsType[*http.MaxBytesError](err)
	return ok
}

// decode decodes a gzip body of one or several members.
func (r *receiver) decode(in *intake, coded []byte) ([]byte, *answer) {
	if in.decoded == nil {
		in.decoded = make([]byte, smallBody+1)
	}
	body := in.decoded[:min(smallBody, r.maxBody)+1]
	n, err := r.gunzip(body, coded)
	if err == nil && r.maxBody > smallBody {
		// gunzip starts from the beginning again.
		if in.taken == 0 {
			if !r.budget.take(r.maxBody + 1) {
				return nil, busy()
			}
			in.taken = r.maxBody + 1
		}
		body = make([]byte, r.maxBody+1)
		n, err = r.gunzip(body, coded)
	}
	switch {
	case err == nil:
		return nil, tooLarge()
	case errors.Is(err, io.EOF):
		return body[:n], nil
	default:
		return nil, refuse(http.StatusBadRequest, "encoding", "the body is not gzip, as its Content-Encoding says")
	}
}

// gunzipper holds some 40 KiB. It is in use only while a complete body is decoded, never while one is read.
type gunzipper struct {
	gzip.Reader
	coded bytes.Reader
}

// gunzip decodes into b, as fill does.
func (r *receiver) gunzip(b, coded []byte) (int, error) {
	z := r.gunzippers.Get().(*gunzipper)
	defer r.gunzippers.Put(z)
	z.coded.Reset(coded)
	defer z.coded.Reset(nil)
	if err := z.Reset(&z.coded); err != nil {
		return 0, err
	}
	return fill(b, z)
}

// fill reads until b is full. It returns io.EOF if from ends before that.
func fill(b []byte, from io.Reader) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = from.Read(b[n:])
		n += more
	}
	if n == len(b) {
		return n, nil
	}
	return n, err
}

// contentCoding reports whether the body is compressed with gzip; not ok if it is encoded otherwise, or twice.
func contentCoding(h http.Header) (gzipped, ok bool) {
	for _, line := range h["Content-Encoding"] {
		for coding := range strings.SplitSeq(line, ",") {
			switch strings.ToLower(strings.TrimSpace(coding)) {
			case "", "identity":
			case "gzip", "x-gzip":
				if gzipped {
					return false, false
				}
				gzipped = true
			default:
				return false, false
			}
		}
	}
	return gzipped, true
}

// refuse returns the answer that refuses a body, before it is verified.
func refuse(status int, reason, detail string) *answer {
	return &answer{status: status, fate: refused, reason: reason, detail: detail}
}

func tooLarge() *answer {
	return refuse(http.StatusRequestEntityTooLarge, "too_large", "the body is too large")
}

// busy returns the answer to a body that got no share of the budget. It is not verified, so it counts as refused.
func busy() *answer {
	return refuse(http.StatusServiceUnavailable, "busy", "too many large bodies at once; retry")
}

// budget is a semaphore whose unit is the byte.
type budget struct {
	mu    sync.Mutex
	left  int64
	given chan struct{} // closed and replaced when bytes come back
}

func newBudget(bytes int64) *budget { return &budget{left: bytes, given: make(chan struct{})} }

// take acquires n bytes within budgetWait, or returns false.
func (b *budget) take(n int64) bool {
	timeout := time.NewTimer(budgetWait)
	defer timeout.Stop()
	for {
		b.mu.Lock()
		ok, given := b.left >= n, b.given
		if ok {
			b.left -= n
		}
		b.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-given:
		case <-timeout.C:
			return false
		}
	}
}

// give returns n bytes and wakes all that wait for bytes.
func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
	close(b.given)
	b.given = make(chan struct{})
}
