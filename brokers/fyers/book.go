package fyers

import (
	"net/http"
	"slices"

	"github.com/postbridge/postbridge/brokers/book"
)

// Book returns the order book of the Fyers API v3: GET https://api-t1.fyers.in/api/v3/orders, all orders of the day from
// every source. The credential of an account is app_id:access_token. More than 200 requests a minute, three times in a
// day, block the app for the rest of the day. The documentation is https://myapi.fyers.in/docsv3, section Order Book.
func Book() book.Book {
	return book.Book{
		Broker:        New(func() Credentials { return Credentials{} }),
		URL:           "https://api-t1.fyers.in/api/v3",
		Path:          "/orders",
		Authorize:     func(h http.Header, a book.Account) { h.Set("Authorization", a.Credential) },
		MaxRateLimits: 3,
		Rows:          "orderBook",
		Failure: func(status int, m book.Members) error {
			switch code := m.Text("code"); {
			case slices.Contains([]string{"-8", "-15", "-16", "-17"}, code), status == http.StatusUnauthorized:
				return book.ErrToken
			case code == "-429":
				return book.ErrRateLimited
			case m.Text("s") != "ok":
				return book.ErrNotUnderstood
			}
			return nil
		},
	}
}
