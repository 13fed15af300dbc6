# make run, make demo and make test need Go and make, nothing else. The tests against a real Kafka want Java and Maven, too.

GOLANGCI_VERSION = v2.15.0
GOLANGCI         = .tools/golangci-lint-$(GOLANGCI_VERSION)
PROMTOOL_VERSION = v0.315.0
PROMTOOL         = .tools/promtool-$(PROMTOOL_VERSION)
FUZZTIME         = 30s

# deploy/dev.env, with what is in the environment already taking precedence.
DEV = had=$$(export -p | grep ' POSTBRIDGE_'); set -a; . deploy/dev.env; eval "$$had"; set +a

.PHONY: build release run demo kafka kafka-jars test image-test rules-test unit-test lint fmt bench fuzz clean

# ---- build and try ---------------------------------------------------------------------------------------------------

build:
	@go build -o bin/postbridge ./cmd/postbridge

# The binary of a release, for deploy/Dockerfile too: static, and the same bytes from the same source, wherever it is built.
# GOOS, GOARCH and VERSION say which; OUT, where to.
OUT = bin/postbridge
release:
	@CGO_ENABLED=0 GOOS=$(GOOS) GOARCH=$(GOARCH) GOFLAGS= \
		go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o $(OUT) ./cmd/postbridge

# Serves the example Kite app and a Dhan token, with an embedded bus. Data is in data/.
run: build
	@$(DEV); exec bin/postbridge serve

# In a second shell: sends the official samples of both brokers and shows what came of them on the bus.
demo: build
	@$(DEV); set -e; \
	echo "--- sending deploy/samples/kite.json and deploy/samples/dhan.json"; \
	bin/postbridge send deploy/samples/kite.json || { echo "demo: run 'make run' in another shell first" >&2; exit 1; }; \
	bin/postbridge send --broker dhan deploy/samples/dhan.json; \
	echo "--- the events on the bus (postbridge tail --headers shows subject or key and headers, too)"; \
	bin/postbridge tail --from start --order 220303000308932 --count 1 --timeout 10s; \
	bin/postbridge tail --from start --order 112111182198 --count 1 --timeout 10s

# A real Kafka on 127.0.0.1:9092, with its data in data/kafka. Needs Java 17, and Maven once, for the jars. It says how to
# publish to it and how to look.
kafka:
	@go run ./deploy/kafka

# Fetches the jars beforehand, for tests without a network.
kafka-jars:
	@go run ./deploy/kafka -fetch

# ---- check -----------------------------------------------------------------------------------------------------------

# The race detector needs a C compiler. Without one the tests still say whether postbridge works on this machine.
# KAFKA_TEST_REQUIRED=1 makes it fail without a real Kafka. KAFKA_TEST_BROKERS is one that runs, for tests that start none.
test:
	@if command -v java >/dev/null && command -v mvn >/dev/null; then \
		$(MAKE) --no-print-directory kafka-jars || { \
			echo "*** THE JARS OF KAFKA ARE NOT THERE: THE TESTS THAT START A REAL KAFKA ARE LEFT OUT ***" >&2; \
			[ "$$KAFKA_TEST_REQUIRED" != 1 ]; \
		}; \
	elif [ -z "$$KAFKA_TEST_BROKERS" ]; then \
		echo "*** NO JAVA OR MAVEN, AND NO KAFKA_TEST_BROKERS: THE TESTS AGAINST A REAL KAFKA ARE LEFT OUT ***" >&2; \
		[ "$$KAFKA_TEST_REQUIRED" != 1 ]; \
	fi
	@if [ "$$(go env CGO_ENABLED)" = 1 ] && command -v $$(go env CC) >/dev/null; then \
		go test -race ./...; \
	else \
		echo "*** NO C COMPILER: TESTING WITHOUT THE RACE DETECTOR ***" >&2; \
		go test ./...; \
	fi

# The image without a container engine: the rules of docker build --check, the same bytes twice, both architectures, and
# the binary in an empty root that cannot be written, as a user without rights. Linux, and root for the namespaces.
image-test:
	@cd deploy/image/lint && go run . ../../Dockerfile
	go test -count=1 -tags image ./deploy/image

# Each alert fires when it should, and does not when it should not.
rules-test: $(PROMTOOL)
	@$(PROMTOOL) check rules deploy/prometheus/rules.yaml
	@$(PROMTOOL) test rules deploy/prometheus/rules_test.yaml

# The unit file says what systemd knows, and leaves the process little to do harm with. The program need not be installed.
unit-test:
	@if ! command -v systemd-analyze >/dev/null; then \
		echo "*** NO SYSTEMD-ANALYZE: THE UNIT FILE IS NOT CHECKED ***" >&2; exit; \
	fi; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' deploy/systemd/postbridge.service >"$$dir/postbridge.service"; \
	said=$$(systemd-analyze verify "$$dir/postbridge.service" 2>&1) && [ -z "$$said" ] || { echo "$$said" >&2; exit 1; }; \
	systemd-analyze security --offline=yes --threshold=20 "$$dir/postbridge.service" >"$$dir/said" || { cat "$$dir/said" >&2; exit 1; }; \
	tail -n 1 "$$dir/said"

# go install cannot build it: its module replaces others.
$(PROMTOOL):
	@mkdir -p .tools; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir" && go mod init tool 2>/dev/null && \
		go get github.com/prometheus/prometheus/cmd/promtool@$(PROMTOOL_VERSION) 2>/dev/null && \
		go build -o $(CURDIR)/$@ github.com/prometheus/prometheus/cmd/promtool

lint: $(GOLANGCI)
	@$(GOLANGCI) run

fmt: $(GOLANGCI)
	@$(GOLANGCI) fmt

$(GOLANGCI):
	GOBIN=$(CURDIR)/.tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv .tools/golangci-lint $@

# Every fuzz target for FUZZTIME.
fuzz:
	@set -e; for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "--- $$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

# postbridge beside a bare HTTP server, in one go: ratios hold on any machine, requests per second do not.
bench:
	@go run ./deploy/bench

clean:
	@rm -rf bin .tools .bench-*
