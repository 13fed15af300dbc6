package main

import (
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/dhan"
	"github.com/postbridge/postbridge/brokers/fyers"
	"github.com/postbridge/postbridge/brokers/kite"
	"github.com/postbridge/postbridge/brokers/upstox"
)

// unknownBroker returns the error for a --broker that is not the name of a broker.
func unknownBroker(name string) error {
	return misuse("--broker %q is not known; set it to %s", name, strings.Join(brokers.Names(), " or "))
}

// tokenBroker describes a broker that signs nothing: a token in the URL verifies its postbacks.
type tokenBroker struct {
	name, title string
	tokens      secretList
	tokensFile  string
	current     func(*credentials) *atomic.Pointer[[]string]
	idsSetting  string // the setting of the accepted users, without POSTBRIDGE_
	ids         list
}

// tokenBrokers returns the brokers whose only proof is a token, enabled or not.
func (c *config) tokenBrokers() []tokenBroker {
	return []tokenBroker{
		{"dhan", "Dhan", c.DhanTokens, c.DhanTokensFile,
			func(c *credentials) *atomic.Pointer[[]string] { return &c.dhanTokens },
			"DHAN_CLIENT_IDS", c.DhanClientIDs},
		{"upstox", "Upstox", c.UpstoxTokens, c.UpstoxTokensFile,
			func(c *credentials) *atomic.Pointer[[]string] { return &c.upstoxTokens },
			"UPSTOX_USER_IDS", c.UpstoxUserIDs},
		{"fyers", "Fyers", c.FyersTokens, c.FyersTokensFile,
			func(c *credentials) *atomic.Pointer[[]string] { return &c.fyersTokens },
			"FYERS_CLIENT_IDS", c.FyersClientIDs},
	}
}

// on reports whether the broker is enabled.
func (b *tokenBroker) on() bool { return b.tokens != "" || b.tokensFile != "" }

// route returns the path to register, with {token} in place of a token.
func (b *tokenBroker) route() string { return "/" + b.name + "/{token}" }

// tokensSetting returns the name of the setting of the path tokens, without POSTBRIDGE_.
func (b *tokenBroker) tokensSetting() string { return strings.ToUpper(b.name) + "_TOKENS" }

// kiteOn reports whether Kite is enabled.
func (c *config) kiteOn() bool { return c.KiteSecrets != "" || c.KiteSecretsFile != "" }

// requireBroker rejects a configuration without a broker that posts.
func (c *config) requireBroker() error {
	on, alternatives := c.kiteOn(), []string{}
	for _, b := range c.tokenBrokers() {
		on = on || b.on()
		alternatives = append(alternatives, envPrefix+b.tokensSetting())
	}
	if !on {
		return misuse("no broker is configured; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, or %s",
			strings.Join(alternatives, " or "))
	}
	return nil
}

// checkBrokers rejects settings of a broker that is not enabled.
func (c *config) checkBrokers() error {
	for _, b := range c.tokenBrokers() {
		if !b.on() && b.ids != nil {
			return bad(b.idsSetting, "is set but %s is off; set POSTBRIDGE_%s, too", b.title, b.tokensSetting())
		}
		for i, id := range b.ids { // not secret, but as easily mistyped
			if err := checkSecret(id); err != nil {
				return bad(b.idsSetting, "entry %d %v", i+1, err)
			}
		}
	}
	if !c.kiteOn() && (c.KiteTokens != "" || c.KiteTokensFile != "") {
		return bad("KITE_TOKENS", "is set but Kite is off; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, too")
	}
	return checkChoice("KITE_CHECKSUM", c.KiteChecksum, "order_timestamp", "user_id")
}

// brokers returns the configured brokers and their routes, with {token} in place of a token.
func (c *config) brokers(credentials *credentials) (all []bridge.Broker, routes []string, err error) {
	adapters := brokers.Config{
		Kite: kite.Config{Checksum: kite.Formula(c.KiteChecksum), Credentials: credentials.kite},
		Dhan: func() dhan.Credentials {
			return dhan.Credentials{Tokens: load(&credentials.dhanTokens), ClientIDs: c.DhanClientIDs}
		},
		Upstox: func() upstox.Credentials {
			return upstox.Credentials{Tokens: load(&credentials.upstoxTokens), UserIDs: c.UpstoxUserIDs}
		},
		Fyers: func() fyers.Credentials {
			return fyers.Credentials{Tokens: load(&credentials.fyersTokens), ClientIDs: c.FyersClientIDs}
		},
	}
	on := make(map[string]string) // the routes of the brokers that are on
	if c.kiteOn() {
		on["kite"] = c.kiteRoute()
	}
	for _, b := range c.tokenBrokers() {
		if b.on() {
			on[b.name] = b.route()
		}
	}
	for _, name := range brokers.Names() {
		if on[name] == "" {
			continue
		}
		b, err := brokers.New(name, adapters)
		if err != nil {
			return nil, nil, err
		}
		all, routes = append(all, b), append(routes, on[name])
	}
	return all, routes, nil
}

// registration tells where the URL of a broker is registered, and on what it depends whether postbacks come.
type registration struct{ where, check string }

func registrations() map[string]registration {
	return map[string]registration{
		"kite": {"the app in Kite's developer console", "Kite posts only orders that are placed with the api_key of the " +
			"app; for other orders of an account run 'postbridge reconcile'"},
		"dhan": {"web.dhan.co, with the access token or API key",
			"Dhan posts only orders that are placed with that access token or API key"},
		"upstox": {"the app in Upstox's My Apps", "Upstox accepts no URL of a tunnel or of dynamic DNS"},
		"fyers": {"the app in Fyers's API dashboard", "Fyers posts only after a login through the app, and only the " +
			"states that are chosen there; after an answer other than 200 nothing for half an hour"},
	}
}

// logRegistrations logs what to register at each broker.
func (c *config) logRegistrations(log *slog.Logger, routes []string) {
	for _, route := range routes {
		broker, _, _ := strings.Cut(strings.TrimPrefix(route, "/"), "/")
		r := registrations()[broker]
		log.Info("register this URL at the broker", "broker", broker, "url", "https://<your host>"+route,
			"where", r.where, "if_nothing_comes", r.check)
	}
	if c.TLSCertFile == "" {
		log.Info("brokers post to https only: a proxy or a tunnel has to forward the broker routes", "to", c.Listen)
	}
}

// kiteRoute returns the path to register for Kite.
func (c *config) kiteRoute() string {
	if c.KiteTokens != "" || c.KiteTokensFile != "" {
		return "/kite/{token}"
	}
	return "/kite"
}
