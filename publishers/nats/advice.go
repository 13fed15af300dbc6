package nats

import (
	"errors"
	"fmt"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Errors of the JetStream API, as nats-server numbers them (its server/errors.json).
const (
	errCodeAccountExceeded   jetstream.ErrorCode = 10002
	errCodeNoPeers           jetstream.ErrorCode = 10005
	errCodeClusterNotActive  jetstream.ErrorCode = 10006
	errCodeNotAssigned       jetstream.ErrorCode = 10007
	errCodeNotAvailable      jetstream.ErrorCode = 10008
	errCodeNotLeader         jetstream.ErrorCode = 10009
	errCodeServerExceeded    jetstream.ErrorCode = 10023
	errCodeTooManyStreams    jetstream.ErrorCode = 10027
	errCodeMemoryExceeded    jetstream.ErrorCode = 10028
	errCodeStorageExceeded   jetstream.ErrorCode = 10047
	errCodeTooLarge          jetstream.ErrorCode = 10054 // for the stream, for good
	errCodeOtherStream       jetstream.ErrorCode = 10060 // it is for another stream
	errCodeSubjectsOverlap   jetstream.ErrorCode = 10065
	errCodeReplicas          jetstream.ErrorCode = 10074
	errCodeStoreFailed       jetstream.ErrorCode = 10077 // mostly because the stream is full
	errCodeHeaderTooLarge    jetstream.ErrorCode = 10097 // for any stream, for good
	errCodeSealed            jetstream.ErrorCode = 10109
	errCodeMaxBytesRequired  jetstream.ErrorCode = 10113
	errCodeOffline           jetstream.ErrorCode = 10118
	errCodeNoLimits          jetstream.ErrorCode = 10120
	errCodeMaxStreamBytes    jetstream.ErrorCode = 10122
	errCodeTooManyRequests   jetstream.ErrorCode = 10167
	errCodeNotCounter        jetstream.ErrorCode = 10169
	errCodeOfflineWithReason jetstream.ErrorCode = 10194
)

// advice says what to do about an error of the JetStream API, whether it comes in place of an acknowledgement or of a
// stream; empty where the error says all there is to say.
func advice(code jetstream.ErrorCode) string {
	switch code {
	case errCodeAccountExceeded:
		return "raise the account's JetStream storage limit, or remove what other streams of the account keep"
	case errCodeTooManyStreams:
		return "raise the account's limit of streams, or remove a stream"
	case errCodeMaxBytesRequired:
		return "the account requires streams with a size: set POSTBRIDGE_NATS_MAX_BYTES"
	case errCodeMaxStreamBytes:
		return "lower POSTBRIDGE_NATS_MAX_BYTES, or raise the account's limit of a stream's size"
	case errCodeNoLimits:
		return "the account has no JetStream limits for this number of replicas: " +
			"set POSTBRIDGE_NATS_REPLICAS to one it has, or give it limits"
	case errCodeServerExceeded, errCodeStorageExceeded:
		return "make room on the server's disk, or raise max_file_store in its jetstream block"
	case errCodeMemoryExceeded:
		return "raise max_memory_store in the server's jetstream block"
	case errCodeReplicas, errCodeClusterNotActive:
		return "the server is not one of a cluster: set POSTBRIDGE_NATS_REPLICAS=1, or run a cluster"
	case errCodeNoPeers:
		return "too few servers can hold the stream: bring them back, free space on them, " +
			"or lower POSTBRIDGE_NATS_REPLICAS"
	case errCodeNotAssigned, errCodeNotAvailable, errCodeNotLeader, errCodeOffline, errCodeOfflineWithReason:
		return "bring back the servers of the cluster: a stream needs a majority of them"
	case errCodeSubjectsOverlap:
		return "another stream has some of the subjects: take them off it, or set POSTBRIDGE_PREFIX"
	case errCodeStoreFailed:
		return "make room in it or raise its limits"
	case errCodeOtherStream:
		return "take the subjects off the stream that has them, or remove the subject mapping that leads there"
	case errCodeSealed:
		return "delete or rename the stream"
	case errCodeNotCounter:
		return "the stream takes only counters: recreate it without allow_msg_counter"
	case errCodeTooManyRequests:
		return "the server is overloaded: look at its disk and its load"
	}
	return ""
}

// advised is an error with what to do about it.
func advised(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || advice(api.ErrorCode) == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, advice(api.ErrorCode))
}

// never reports whether an error says that the bus can never take the message.
func never(err error) bool {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, natsgo.ErrMaxPayload):
		return true
	case !errors.As(err, &api):
		return false
	}
	// A store that cannot write so large a message says so like one that is full.
	return api.ErrorCode == errCodeTooLarge || api.ErrorCode == errCodeHeaderTooLarge ||
		api.ErrorCode == errCodeStoreFailed && api.Description == storeTooLarge
}

// storeTooLarge is how nats-server describes a message that its file store cannot hold: one of more than 32 MiB.
const storeTooLarge = "message too large"
