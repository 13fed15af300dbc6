module github.com/postbridge/postbridge

go 1.26.0

require (
	github.com/caarlos0/env/v10 v10.0.0 // the settings, from the environment
	github.com/cenkalti/backoff/v4 v4.3.0 // every retry
	github.com/go-json-experiment/json v0.0.0-20260820222146-c27c302e5fc3 // the canonical text of nested values in postbacks, with sorted names, and unescaped strings; tests
	github.com/go-logr/logr v1.4.4 // OpenTelemetry reports wrong settings through it
	github.com/nats-io/jwt/v2 v2.8.2 // tests: logins by credentials
	github.com/nats-io/nats-server/v2 v2.15.2 // the embedded bus, and the tests' JetStream servers
	github.com/nats-io/nats.go v1.55.0 // the JetStream publisher, tail
	github.com/nats-io/nkeys v0.4.16 // tests: logins by credentials
	github.com/pierrec/lz4/v4 v4.1.33 // compresses the record batches that the Kafka publisher encodes itself
	github.com/prometheus/client_golang v1.25.0 // metrics
	github.com/rogpeppe/go-internal v1.16.0 // tests: testscript runs the stories
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3 // tests: every event is valid by deploy/event.schema.json
	github.com/segmentio/kafka-go v0.4.51 // the Kafka publisher, tail
	github.com/twmb/franz-go v1.22.2 // tests: a second Kafka client reads what the publisher wrote
	github.com/twmb/franz-go/pkg/kfake v0.0.0-20260918054303-01f206a7e32c // tests: a Kafka in process, with injected faults
	github.com/twmb/franz-go/pkg/kmsg v1.15.0 // tests: the requests and answers that kfake changes
	go.opentelemetry.io/otel v1.47.0 // traces
	go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp v1.47.0 // traces, sent by OTLP
	go.opentelemetry.io/otel/sdk v1.47.0 // traces, sampled and batched
	go.opentelemetry.io/otel/trace v1.47.0 // traces
	go.opentelemetry.io/proto/otlp v1.11.0 // tests: the collector that receives traces
	golang.org/x/sys v0.49.0 // locks, renames and free space on Windows
	google.golang.org/protobuf v1.36.12 // tests: the collector that receives traces
)

require (
	github.com/antithesishq/antithesis-sdk-go v0.8.0-default-no-op // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/google/go-tpm v0.9.8 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.30.0 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/minio/highwayhash v1.0.4 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/xdg-go/scram v1.4.0 // indirect
	github.com/xdg-go/stringprep v1.0.4 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/otel/exporters/otlp/otlptrace v1.47.0 // indirect
	go.opentelemetry.io/otel/log v1.47.0 // indirect
	go.opentelemetry.io/otel/metric v1.47.0 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/time v0.16.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/grpc v1.83.2 // indirect
)
