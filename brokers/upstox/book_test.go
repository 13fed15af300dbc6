package upstox_test

import (
	"testing"

	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/upstox"
)

// TestBook reads the documented sample and errors of Upstox.
func TestBook(t *testing.T) {
	brokertest.RunBook(t, brokertest.BookSuite{
		Book:    upstox.Book(),
		Account: book.Account{UserID: "7ABC12", Credential: "access-token-1"},
		Headers: map[string]string{"Authorization": "Bearer access-token-1"},
		Dir:     "testdata/book",
		Responses: []struct {
			Status int
			Body   string
			Want   error
		}{
			{200, `{"status":"success","data":[]}`, nil},
			{200, `[]`, nil},
			{401, `{"status":"error","errors":[{"errorCode":"UDAPI100050","message":"Invalid token used to access API",` +
				`"propertyPath":null,"invalidValue":null}]}`, book.ErrToken},
			{401, `{"status":"error","errors":[{"errorCode":"UDAPI1221","message":"x"}]}`, book.ErrNotUnderstood},
			{429, `{"status":"error","errors":[{"errorCode":"UDAPI10005","message":"Too Many Request Sent"}]}`,
				book.ErrRateLimited},
			{400, `{"status":"error","errors":[{"errorCode":"UDAPI10005","message":"x"}]}`, book.ErrRateLimited},
			{403, `Error 1010`, book.ErrNotUnderstood},
			{500, `{"status":"error","errors":[{"errorCode":"UDAPI100500","message":"x"}]}`, book.ErrOutage},
			{200, `{"status":"error","data":null}`, book.ErrNotUnderstood},
		},
	})
}
