package kite_test

import (
	"testing"

	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/kite"
)

// TestBook reads rows with the values of the documented ones and the errors of
// https://kite.trade/docs/connect/v3/exceptions.
func TestBook(t *testing.T) {
	brokertest.RunBook(t, brokertest.BookSuite{
		Book:    kite.Book(),
		Account: book.Account{UserID: "AB1234", Credential: "api-key:access-token"},
		Headers: map[string]string{"X-Kite-Version": "3", "Authorization": "token api-key:access-token"},
		Dir:     "testdata/book",
		Responses: []struct {
			Status int
			Body   string
			Want   error
		}{
			{200, `{"status":"success","data":[]}`, nil},
			{403, `{"status":"error","message":"Incorrect ` + "`api_key` or `access_token`" + `.","data":null,` +
				`"error_type":"TokenException"}`, book.ErrToken},
			{403, `{"status":"error","message":"x","error_type":"PermissionException"}`, book.ErrNotUnderstood},
			{400, `{"status":"error","message":"x","error_type":"InputException"}`, book.ErrNotUnderstood},
			{429, `{"status":"error","message":"Too many requests","error_type":"NetworkException"}`,
				book.ErrRateLimited},
			{500, `{"status":"error","message":"x","error_type":"GeneralException"}`, book.ErrOutage},
			{503, `{"status":"error","message":"x","error_type":"NetworkException"}`, book.ErrOutage},
			{504, `{"status":"error","message":"x","error_type":"DataException"}`, book.ErrOutage},
			{200, `{"status":"error","data":null}`, book.ErrNotUnderstood},
		},
	})
}
