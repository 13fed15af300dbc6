package main

import (
	"github.com/nats-io/nats.go"
)

// busAddress is where the bus is for others than serve.
func (c *config) busAddress() string {
	if c.embedded() {
		return "nats://" + c.NATSListen
	}
	return c.NATSURL
}

// natsOptions are how to log in. Secrets are looked at anew for each connection.
func natsOptions(c *config, login *credentials) (options []nats.Option) {
	switch {
	case c.NATSCredsFile != "":
		options = append(options, nats.UserCredentials(c.NATSCredsFile))
	case c.NATSUser != "":
		options = append(options, nats.UserInfoHandler(func() (user, password string) {
			login.files.reload()
			return c.NATSUser, load(&login.natsPassword)
		}))
	case login.natsToken.Load() != nil:
		options = append(options, nats.TokenHandler(func() string {
			login.files.reload()
			return load(&login.natsToken)
		}))
	}
	if c.NATSTLSCAFile != "" {
		options = append(options, nats.RootCAs(c.NATSTLSCAFile))
	}
	if c.NATSTLSCertFile != "" {
		options = append(options, nats.ClientCert(c.NATSTLSCertFile, c.NATSTLSKeyFile))
	}
	return options
}
