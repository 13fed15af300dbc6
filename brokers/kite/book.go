package kite

import (
	"net/http"

	"github.com/postbridge/postbridge/brokers/book"
)

// Book returns the order book of Kite Connect: GET https://api.kite.trade/orders, all orders of the day from every
// source. The credential of an account is api_key:access_token. The documentation is
// https://kite.trade/docs/connect/v3/orders and https://kite.trade/docs/connect/v3/exceptions.
func Book() book.Book {
	return book.Book{
		Broker: New(Config{}),
		URL:    "https://api.kite.trade",
		Path:   "/orders",
		Authorize: func(h http.Header, a book.Account) {
			h.Set("X-Kite-Version", "3")
			h.Set("Authorization", "token "+a.Credential)
		},
		Rows: "data",
		Failure: func(_ int, m book.Members) error {
			switch {
			// A 403 with another type, such as PermissionException, does not mean that the token is invalid.
			case m.Text("error_type") == "TokenException":
				return book.ErrToken
			case m.Text("status") != "success":
				return book.ErrNotUnderstood
			}
			return nil
		},
	}
}
