package fyers_test

import (
	"testing"

	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/fyers"
)

// TestBook reads the documented sample and errors of Fyers.
func TestBook(t *testing.T) {
	brokertest.RunBook(t, brokertest.BookSuite{
		Book:    fyers.Book(),
		Account: book.Account{UserID: "XA00001", Credential: "app-id:access-token"},
		Headers: map[string]string{"Authorization": "app-id:access-token"},
		Dir:     "testdata/book",
		Responses: []struct {
			Status int
			Body   string
			Want   error
		}{
			{200, `{"s":"ok","code":200,"message":"","orderBook":[]}`, nil},
			{401, `{"s":"error","code":-16,"message":"Could not authenticate the user"}`, book.ErrToken},
			{401, `{"s":"error","code":-8,"message":"Your token has expired"}`, book.ErrToken},
			{200, `{"s":"error","code":-15,"message":"x"}`, book.ErrToken},
			{403, `{"s":"error","code":-17,"message":"x"}`, book.ErrToken},
			{429, `{"s":"error","code":-429,"message":"request limit reached"}`, book.ErrRateLimited},
			{200, `{"s":"error","code":-429,"message":"request limit reached"}`, book.ErrRateLimited},
			{400, `{"s":"error","code":-50,"message":"x"}`, book.ErrNotUnderstood},
			{500, `{"s":"error","code":-500,"message":"x"}`, book.ErrOutage},
		},
	})
}
