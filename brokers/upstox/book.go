package upstox

import (
	"net/http"
	"strings"

	"github.com/postbridge/postbridge/brokers/book"
)

// Book returns the order book of Upstox: GET https://api.upstox.com/v2/order/retrieve-all, all orders of the day from
// every source. The credential of an account is its access token. The documentation is
// https://upstox.com/developer/api-documentation/get-order-book; its table has the rows in data, its sample is a bare
// array.
func Book() book.Book {
	return book.Book{
		Broker:    New(func() Credentials { return Credentials{} }),
		URL:       "https://api.upstox.com",
		Path:      "/v2/order/retrieve-all",
		Authorize: func(h http.Header, a book.Account) { h.Set("Authorization", "Bearer "+a.Credential) },
		Rows:      "data",
		Failure: func(_ int, m book.Members) error {
			// Errors are an array. A 401 with another code, such as that of an unregistered address (UDAPI1221), does not
			// mean that the token is invalid.
			switch errors := string(m["errors"]); {
			case strings.Contains(errors, `"UDAPI100050"`):
				return book.ErrToken
			case strings.Contains(errors, `"UDAPI10005"`):
				return book.ErrRateLimited
			case len(m) > 0 && m.Text("status") != "success":
				return book.ErrNotUnderstood
			}
			return nil
		},
	}
}
