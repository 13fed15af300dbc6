package dhan

import (
	"net/http"
	"slices"

	"github.com/postbridge/postbridge/brokers/book"
)

// Book returns the order book of DhanHQ v2: GET https://api.dhan.co/v2/orders, all orders of the day from every source.
// The credential of an account is its access token. The documentation is https://dhanhq.co/docs/v2/orders and
// https://dhanhq.co/docs/v2/annexure.
func Book() book.Book {
	return book.Book{
		Broker: New(func() Credentials { return Credentials{} }),
		URL:    "https://api.dhan.co/v2",
		Path:   "/orders",
		Authorize: func(h http.Header, a book.Account) {
			h.Set("access-token", a.Credential)
			h.Set("client-id", a.UserID)
		},
		Failure: func(status int, m book.Members) error {
			switch code := m.Text("errorCode"); {
			// DH-901 comes with 401; tests of the SDK have it with 403, too.
			case code == "DH-901", status == http.StatusUnauthorized:
				return book.ErrToken
			case slices.Contains([]string{"DH-904", "805", "RL001"}, code):
				return book.ErrRateLimited
			}
			return nil
		},
	}
}
