package nats

import (
	"errors"
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Errors of the JetStream API that are handled in their own way.
const (
	errCodeTooLarge       = jetstream.ErrorCode(server.JSStreamMessageExceedsMaximumErr) // for the stream, for good
	errCodeHeaderTooLarge = jetstream.ErrorCode(server.JSStreamHeaderExceedsMaximumErr)  // for any stream, for good
	errCodeOtherStream    = jetstream.ErrorCode(server.JSStreamNotMatchErr)              // it reached another stream
	errCodeStoreFailed    = jetstream.ErrorCode(server.JSStreamStoreFailedF)             // mostly: the stream is full
	errCodeSealed         = jetstream.ErrorCode(server.JSStreamSealedErr)
	errCodeNotCounter     = jetstream.ErrorCode(server.JSMessageIncrMissingErr)
)

// advice returns the remedy for an error of the JetStream API, or "" where the error has it.
func advice(code jetstream.ErrorCode) string {
	const majority = "bring back the servers of the cluster: a stream needs a majority of them"
	const cluster = "the server is not one of a cluster: set POSTBRIDGE_NATS_REPLICAS=1, or run a cluster"
	const disk = "free space on the server's disk, or raise max_file_store in its jetstream block"
	return map[server.ErrorIdentifier]string{
		server.JSAccountResourcesExceededErr: "raise the account's JetStream storage limit, " +
			"or remove what other streams of the account keep",
		server.JSMaximumStreamsLimitErr: "raise the account's limit of streams, or remove a stream",
		server.JSStreamMaxBytesRequired: "the account requires streams with a size: set POSTBRIDGE_NATS_MAX_BYTES",
		server.JSStreamMaxStreamBytesExceeded: "lower POSTBRIDGE_NATS_MAX_BYTES, " +
			"or raise the account's limit of a stream's size",
		server.JSNoLimitsErr: "the account has no JetStream limits for this number of replicas: " +
			"set POSTBRIDGE_NATS_REPLICAS to one it has, or give it limits",
		server.JSInsufficientResourcesErr:      disk,
		server.JSStorageResourcesExceededErr:   disk,
		server.JSMemoryResourcesExceededErr:    "raise max_memory_store in the server's jetstream block",
		server.JSStreamReplicasNotSupportedErr: cluster,
		server.JSClusterNotActiveErr:           cluster,
		server.JSClusterNoPeersErrF: "too few servers can hold the stream: bring them back, free space on them, " +
			"or lower POSTBRIDGE_NATS_REPLICAS",
		server.JSClusterNotAssignedErr:   majority,
		server.JSClusterNotAvailErr:      majority,
		server.JSClusterNotLeaderErr:     majority,
		server.JSStreamOfflineErr:        majority,
		server.JSStreamOfflineReasonErrF: majority,
		server.JSStreamSubjectOverlapErr: "another stream has some of the subjects: take them off it, " +
			"or set POSTBRIDGE_PREFIX",
		server.JSStreamStoreFailedF: "free space in it or raise its limits",
		server.JSStreamNotMatchErr: "take the subjects off the stream that has them, " +
			"or remove the subject mapping that leads there",
		server.JSStreamSealedErr:       "delete or rename the stream",
		server.JSMessageIncrMissingErr: "the stream accepts only counters: recreate it without allow_msg_counter",
		server.JSStreamTooManyRequests: "the server is overloaded: see its disk and its load",
	}[server.ErrorIdentifier(code)]
}

// advised adds the remedy to an error of the JetStream API.
func advised(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && advice(api.ErrorCode) != "" {
		return fmt.Errorf("%w: %s", err, advice(api.ErrorCode))
	}
	return err
}

// permanent reports whether an error means that the bus can never store the message.
func permanent(err error) bool {
	// nats-server's description of a message that its file store cannot hold: one of more than 32 MiB.
	const storeTooLarge = "message too large"
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return errors.Is(err, natsgo.ErrMaxPayload)
	}
	// A store that cannot write so large a message has the same code as one that is full.
	return api.ErrorCode == errCodeTooLarge || api.ErrorCode == errCodeHeaderTooLarge ||
		api.ErrorCode == errCodeStoreFailed && api.Description == storeTooLarge
}
