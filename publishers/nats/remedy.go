package nats

// connectionRemedy returns the remedy for a connection that fails with err, for conditions and for doctor.
func connectionRemedy(err error) string {
	if authError(err) {
		return "check POSTBRIDGE_NATS_USER and POSTBRIDGE_NATS_PASSWORD, " +
			"POSTBRIDGE_NATS_TOKEN or POSTBRIDGE_NATS_CREDS_FILE"
	}
	return "start it, or check POSTBRIDGE_NATS_URL, the network and POSTBRIDGE_NATS_TLS_CA_FILE, " +
		"POSTBRIDGE_NATS_TLS_CERT_FILE and POSTBRIDGE_NATS_TLS_KEY_FILE"
}

const (
	// inboxRemedy is the remedy if answers to requests cannot arrive.
	inboxRemedy = "allow subscribing to _INBOX.>"
	// filesRemedy is the remedy for files that cannot be loaded.
	filesRemedy = "correct the file; POSTBRIDGE_NATS_TLS_CA_FILE, POSTBRIDGE_NATS_TLS_CERT_FILE and " +
		"POSTBRIDGE_NATS_TLS_KEY_FILE name PEM files"
)

// lookupRemedy returns the remedy if a lookup of the stream is not answered.
func (d *destination) lookupRemedy() string {
	return "allow publishing to $JS.API.STREAM.INFO." + d.stream + " and subscribing to _INBOX.>, " +
		"or see the server's log: a stream needs a majority of its replicas"
}
