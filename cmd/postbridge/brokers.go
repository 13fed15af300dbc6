package main

import (
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/brokers"
	"github.com/postbridge/postbridge/brokers/dhan"
	"github.com/postbridge/postbridge/brokers/kite"
)

// brokerNames returns the names of all brokers.
func brokerNames() []string { return []string{"kite", "dhan"} }

// unknownBroker returns the error for a --broker that is not in brokerNames.
func unknownBroker(name string) error {
	return misuse("--broker %q is not known; set it to %s", name, strings.Join(brokerNames(), " or "))
}

func (c *config) kiteOn() bool { return c.KiteSecrets != "" || c.KiteSecretsFile != "" }

func (c *config) dhanOn() bool { return c.DhanTokens != "" || c.DhanTokensFile != "" }

func (c *config) checkBrokers() error {
	switch {
	case !c.kiteOn() && !c.dhanOn():
		return misuse("no broker to take postbacks from; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, " +
			"or POSTBRIDGE_DHAN_TOKENS")
	case !c.kiteOn() && (c.KiteTokens != "" || c.KiteTokensFile != ""):
		return bad("KITE_TOKENS", "is set but Kite is off; set POSTBRIDGE_KITE_SECRETS to app_id=api_secret, too")
	case !c.dhanOn() && c.DhanClientIDs != nil:
		return bad("DHAN_CLIENT_IDS", "is set but Dhan is off; set POSTBRIDGE_DHAN_TOKENS, too")
	}
	for i, id := range c.DhanClientIDs { // not secret, but as easily mistyped
		if err := checkSecret(id); err != nil {
			return bad("DHAN_CLIENT_IDS", "entry %d %v", i+1, err)
		}
	}
	return checkChoice("KITE_CHECKSUM", c.KiteChecksum, "order_timestamp", "user_id")
}

// brokers returns the configured brokers and their routes, with {token} in place of a token.
func (c *config) brokers(credentials *credentials) (all []bridge.Broker, routes []string, err error) {
	on := map[string]bool{"kite": c.kiteOn(), "dhan": c.dhanOn()}
	route := map[string]string{"kite": c.kiteRoute(), "dhan": "/dhan/{token}"}
	for _, name := range brokerNames() {
		if !on[name] {
			continue
		}
		b, err := brokers.New(name, brokers.Config{
			Kite: kite.Config{Checksum: kite.Formula(c.KiteChecksum), Credentials: credentials.kite},
			Dhan: func() dhan.Credentials {
				return dhan.Credentials{Tokens: load(&credentials.dhanTokens), ClientIDs: c.DhanClientIDs}
			},
		})
		if err != nil {
			return nil, nil, err
		}
		all, routes = append(all, b), append(routes, route[name])
	}
	return all, routes, nil
}

func (c *config) kiteRoute() string {
	if c.KiteTokens != "" || c.KiteTokensFile != "" {
		return "/kite/{token}"
	}
	return "/kite"
}
