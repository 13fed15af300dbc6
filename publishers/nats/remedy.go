package nats

// connectionRemedy returns the remedy for a connection that fails with err, for conditions and for doctor.
func connectionRemedy(err error) string {
	if authError(err) {
		return "check POSTBRIDGE_NATS_USER and POSTBRIDGE_NATS_PASSWORD, " +
			"POSTBRIDGE_NATS_TOKEN, POSTBRIDGE_NATS_CREDS_FILE or POSTBRIDGE_NATS_NKEY_FILE"
	}
	return "start it, or check POSTBRIDGE_NATS_URL, the network and POSTBRIDGE_NATS_TLS_CA_FILE, " +
		"POSTBRIDGE_NATS_TLS_CERT_FILE and POSTBRIDGE_NATS_TLS_KEY_FILE"
}

// filesRemedy is the remedy for files that cannot be loaded.
const filesRemedy = "correct the file; POSTBRIDGE_NATS_TLS_CA_FILE, POSTBRIDGE_NATS_TLS_CERT_FILE and " +
	"POSTBRIDGE_NATS_TLS_KEY_FILE name PEM files"

// inboxRemedy returns the remedy if answers to requests cannot arrive.
func (c *Config) inboxRemedy() string {
	return "allow subscribing to " + c.answers() + ", or set POSTBRIDGE_NATS_INBOX_PREFIX"
}

// lookupRemedy returns the remedy if a lookup of the stream is not answered; answers are the subjects of answers.
func (d *destination) lookupRemedy(answers string) string {
	return "allow publishing to " + d.api + "STREAM.INFO." + d.stream + " and subscribing to " + answers +
		", or see the server's log: a stream needs a majority of its replicas"
}
