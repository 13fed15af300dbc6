package dhan_test

import (
	"testing"

	"github.com/postbridge/postbridge/brokers/book"
	"github.com/postbridge/postbridge/brokers/brokertest"
	"github.com/postbridge/postbridge/brokers/dhan"
)

// TestBook reads the sample of https://dhanhq.co/docs/v2/orders and the errors of https://dhanhq.co/docs/v2/annexure.
func TestBook(t *testing.T) {
	brokertest.RunBook(t, brokertest.BookSuite{
		Book:    dhan.Book(),
		Account: book.Account{UserID: "1000000003", Credential: "access-token-1"},
		Headers: map[string]string{"access-token": "access-token-1", "client-id": "1000000003"},
		Dir:     "testdata/book",
		Responses: []struct {
			Status int
			Body   string
			Want   error
		}{
			{200, `[]`, nil},
			{401, `{"errorType":"Invalid_Authentication","errorCode":"DH-901","errorMessage":"Client ID or user ` +
				`generated access token is invalid or expired."}`, book.ErrToken},
			{403, `{"errorType":"Invalid_Authentication","errorCode":"DH-901","errorMessage":"x"}`, book.ErrToken},
			{429, `{"errorType":"Rate_Limit","errorCode":"DH-904","errorMessage":"x"}`, book.ErrRateLimited},
			{400, `{"errorType":"Rate_Limit","errorCode":"DH-904","errorMessage":"x"}`, book.ErrRateLimited},
			{400, `{"errorType":"Input_Exception","errorCode":"DH-905","errorMessage":"x"}`, book.ErrNotUnderstood},
			{500, `{"errorType":"Internal_Server_Error","errorCode":"DH-908","errorMessage":"x"}`, book.ErrOutage},
		},
	})
}
