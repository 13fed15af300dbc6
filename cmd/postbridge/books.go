package main

import (
	"errors"
	"net"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/book"
)

// bookBroker describes the settings of a broker's order book.
type bookBroker struct {
	name       string
	tokens     secretList
	tokensFile string
	url        string
	// format is that of an entry of the setting.
	format  string
	current func(*credentials) *atomic.Pointer[[]book.Account]
}

// books returns all brokers, with access tokens or without.
func (c *config) books() []bookBroker {
	return []bookBroker{
		{"kite", c.KiteAccessTokens, c.KiteAccessTokensFile, c.KiteAPIURL, "user_id=api_key:access_token",
			func(c *credentials) *atomic.Pointer[[]book.Account] { return &c.kiteAccess }},
		{"dhan", c.DhanAccessTokens, c.DhanAccessTokensFile, c.DhanAPIURL, "client_id=access_token",
			func(c *credentials) *atomic.Pointer[[]book.Account] { return &c.dhanAccess }},
		{"upstox", c.UpstoxAccessTokens, c.UpstoxAccessTokensFile, c.UpstoxAPIURL, "user_id=access_token",
			func(c *credentials) *atomic.Pointer[[]book.Account] { return &c.upstoxAccess }},
		{"fyers", c.FyersAccessTokens, c.FyersAccessTokensFile, c.FyersAPIURL, "client_id=app_id:access_token",
			func(c *credentials) *atomic.Pointer[[]book.Account] { return &c.fyersAccess }},
	}
}

// setting returns the name of the setting of the access tokens, without POSTBRIDGE_.
func (b *bookBroker) setting() string { return strings.ToUpper(b.name) + "_ACCESS_TOKENS" }

// on reports whether the broker has access tokens.
func (b *bookBroker) on() bool { return b.tokens != "" || b.tokensFile != "" }

// book returns the order book at the configured address.
func (b *bookBroker) book() (book.Book, error) {
	orders, err := brokers.Book(b.name)
	if b.url != "" {
		orders.URL = strings.TrimSuffix(b.url, "/")
	}
	return orders, err
}

// checkBooks requires an access token, and rejects an address that is no URL.
func (c *config) checkBooks() error {
	on := false
	for _, b := range c.books() {
		on = on || b.on()
		if b.url != "" && !isTokenSafe(b.url) {
			return bad(strings.ToUpper(b.name)+"_API_URL", "is no https URL, and the token must not be sent in the clear; "+
				"write it like https://api.example.com")
		}
	}
	if !on {
		return misuse("no access token is configured; set POSTBRIDGE_KITE_ACCESS_TOKENS to " +
			"user_id=api_key:access_token, or that of another broker")
	}
	return nil
}

// isTokenSafe reports whether a URL has https, or leads to this machine.
func isTokenSafe(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

// parse parses the accounts and their access tokens.
func (b *bookBroker) parse(text string) ([]book.Account, error) {
	seen := make(map[string]bool)
	return parseEntries(text, func(entry string) (book.Account, error) {
		user, credential, _ := strings.Cut(entry, "=")
		a := book.Account{UserID: strings.TrimSpace(user), Credential: strings.TrimSpace(credential)}
		first, second, pair := strings.Cut(a.Credential, ":")
		switch {
		case a.UserID == "" || a.Credential == "":
			return a, errors.New("has no user or no token; write it like " + b.format)
		case strings.ContainsFunc(a.Credential, notInHeader):
			return a, errors.New("has a space or a non-ASCII character in its token; remove it")
		case strings.Contains(b.format, ":") && (!pair || first == "" || second == ""):
			return a, errors.New("has no app in front of the token; write it like " + b.format)
		case seen[a.UserID]:
			return a, errors.New("has the user of an entry before it; remove one of them")
		}
		seen[a.UserID] = true
		return a, nil
	})
}
