# make run, make demo and make test need Go and make, nothing else. The tests against a real Kafka want Java and Maven, too.

GOLANGCI_VERSION = v2.15.0
GOLANGCI         = .tools/golangci-lint-$(GOLANGCI_VERSION)
PROMETHEUS_VERSION = v0.315.0
PROMTOOL         = .tools/promtool-$(PROMETHEUS_VERSION)
HELM_VERSION     = v4.3.1
HELM             = .tools/helm-$(HELM_VERSION)
# What it runs and checks the chart on: the control plane, and what watches it.
KUBERNETES_VERSION   := $(shell sed -n 's|.*k8s.io/kubernetes \(v[0-9.]*\).*|\1|p' helm/test/tools/go.mod)
STATE_METRICS_VERSION = v2.18.0
GATEWAY_API_VERSION   = v1.6.3
OPERATOR_VERSION      = v0.94.0
KUBE             = .tools/kube$(subst v,-,$(KUBERNETES_VERSION)$(STATE_METRICS_VERSION)$(PROMETHEUS_VERSION)$(GATEWAY_API_VERSION)$(OPERATOR_VERSION))
ACTIONLINT_VERSION = v1.7.12
ACTIONLINT       = .tools/actionlint-$(ACTIONLINT_VERSION)
FUZZTIME         = 30s

# deploy/dev.env, with what is in the environment already taking precedence.
DEV = had=$$(export -p | grep ' POSTBRIDGE_'); set -a; . deploy/dev.env; eval "$$had"; set +a

.PHONY: build release cross-build chart run demo kafka kafka-jars kafka-or-loud test test-long image-test rules-test unit-test workflow-test deploy-test page-test helm-test kube-test lint fmt bench fuzz clean

# ---- build and try ---------------------------------------------------------------------------------------------------

build:
	@go build -o bin/postbridge ./cmd/postbridge

# The binary of a release, for deploy/Dockerfile too: static, and the same bytes from the same source, wherever it is built.
# GOOS, GOARCH and VERSION say which; OUT, where to.
OUT = bin/postbridge
release:
	@CGO_ENABLED=0 GOOS=$(GOOS) GOARCH=$(GOARCH) GOFLAGS= \
		go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o $(OUT) ./cmd/postbridge

# Builds everything, and compiles the tests, for each platform that postbridge builds on. A release ships those of Linux
# and macOS.
PLATFORMS = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
cross-build:
	@set -e; export CGO_ENABLED=0; for platform in $(PLATFORMS); do \
		echo "--- $$platform"; \
		export GOOS=$${platform%/*} GOARCH=$${platform#*/}; \
		go build ./...; \
		go vet ./...; \
	done

# The chart of a release, which says that VERSION in its name, and takes the image of it.
chart: $(HELM)
	@$(HELM) package helm/postbridge --version $(VERSION:v%=%) --app-version $(VERSION) --destination $(dir $(OUT))

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

# The race detector needs a C compiler.
RACE = $$([ "$$(go env CGO_ENABLED)" = 1 ] && command -v $$(go env CC) >/dev/null && echo -race)

# The linter vets; go test would first vet every dependency.
GOTEST = race=$(RACE); \
	[ "$$race" ] || echo "*** NO C COMPILER: TESTING WITHOUT THE RACE DETECTOR ***" >&2; \
	go test $$race -vet=off -timeout 30m

# Where there can be no real Kafka, what is left out is said. The jars are fetched by a program that is built like the tests,
# so that the packages of both are compiled once.
kafka-or-loud:
	@if command -v java >/dev/null && command -v mvn >/dev/null; then \
		go run $(RACE) ./deploy/kafka -fetch || { \
			echo "*** THE JARS OF KAFKA ARE NOT THERE: THE TESTS THAT START A REAL KAFKA ARE LEFT OUT ***" >&2; \
			[ "$$KAFKA_TEST_REQUIRED" != 1 ]; \
		}; \
	elif [ -z "$$KAFKA_TEST_BROKERS" ]; then \
		echo "*** NO JAVA OR MAVEN, AND NO KAFKA_TEST_BROKERS: THE TESTS AGAINST A REAL KAFKA ARE LEFT OUT ***" >&2; \
		[ "$$KAFKA_TEST_REQUIRED" != 1 ]; \
	fi

# The short tests: few rounds of those that repeat something, and one Kafka node per package that needs a real one. Five
# minutes on two cores, more than half of it the compiler's when its cache is cold. Many tests wait more than they compute,
# so more of them run at once than there are processors.
# KAFKA_TEST_REQUIRED=1 makes it fail without a real Kafka. KAFKA_TEST_BROKERS is one that runs, for tests that start none.
test: kafka-or-loud
	@n=$$(getconf _NPROCESSORS_ONLN); $(GOTEST) -short -p $$((n + 1)) -parallel $$((2 * n)) ./...

# All of them: every round, every fault, and Kafka clusters to stop, kill and secure, of three nodes, too. It fails where the
# real Kafka cannot be started.
test-long: export KAFKA_TEST_REQUIRED = 1
test-long: kafka-or-loud
	@$(GOTEST) ./...

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

# The workflows say what GitHub knows; with shellcheck about, so do the scripts in them.
workflow-test: $(ACTIONLINT)
	@$(ACTIONLINT) .github/workflows/*.yaml

$(ACTIONLINT):
	GOBIN=$(CURDIR)/.tools go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)
	@mv .tools/actionlint $@

# The files for Compose, Prometheus and Grafana, without a container engine: what they name is there, the parsers of Compose
# and Prometheus take them, and so does postbridge its settings.
deploy-test: $(PROMTOOL)
	@$(PROMTOOL) check config deploy/prometheus/prometheus.yaml
	cd deploy/check && go test -count=1 ./...

# The page at the admin address, in a real browser. SHOTS is a directory for pictures of it, to look at.
page-test:
	@if ! { command -v chromium || command -v google-chrome; } >/dev/null; then \
		echo "*** NO CHROMIUM: THE TESTS OF THE PAGE ARE LEFT OUT ***" >&2; \
		[ "$$PAGE_TEST_REQUIRED" != 1 ]; exit; \
	fi; \
	cd deploy/page && go test -count=1 . $(if $(SHOTS),-shots $(abspath $(SHOTS)))

# The chart, without running it: lint, its output over all examples and many settings, taken by a real API server, and what
# of it has to be so. Its README and schema are held against its values.
helm-test: $(HELM) $(KUBE)
	cd helm/test && HELM=$(CURDIR)/$(HELM) KUBE_TOOLS=$(CURDIR)/$(KUBE) go test -count=1 ./render

# The chart, running: installed, upgraded, scaled and broken on a real control plane whose pods are local processes. Linux,
# and root for the namespaces.
kube-test: $(HELM) $(KUBE) kafka-or-loud
	cd helm/test && HELM=$(CURDIR)/$(HELM) KUBE_TOOLS=$(CURDIR)/$(KUBE) go test -count=1 -timeout 20m -parallel 4 $(if $(RUN),-v -run '$(RUN)') ./kube

$(HELM):
	GOBIN=$(CURDIR)/.tools go install helm.sh/helm/v4/cmd/helm@$(HELM_VERSION)
	@mv .tools/helm $@

# $(call install,package,version,file): for what go install cannot build, since its module replaces others.
install = mkdir -p $(dir $(3)); dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir" && go mod init tool 2>/dev/null && \
	{ go get $(1)@$(2) 2>said || { cat said >&2; false; }; } && go build -o $(CURDIR)/$(3) $(1)

$(PROMTOOL):
	@$(call install,github.com/prometheus/prometheus/cmd/promtool,$(PROMETHEUS_VERSION),$@)

# helm/test/tools/go.mod pins those of Kubernetes. The directory is there only when all of it is.
$(KUBE): helm/test/tools/go.mod
	@rm -rf $@.new && mkdir -p $@.new/definitions
	cd helm/test/tools && v=k8s.io/component-base/version && go build -o $(CURDIR)/$@.new/ -ldflags "-s -w \
		-X $$v.gitVersion=$(KUBERNETES_VERSION) -X $$v.gitMajor=1 -X $$v.gitMinor=$(word 2,$(subst ., ,$(KUBERNETES_VERSION)))" \
		k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler \
		k8s.io/kubernetes/cmd/kubectl
	cd helm/test/tools && go build -o $(CURDIR)/$@.new/etcd -ldflags '-s -w' go.etcd.io/etcd/server/v3
	$(call install,k8s.io/kube-state-metrics/v2,$(STATE_METRICS_VERSION),$@.new/kube-state-metrics)
	$(call install,github.com/prometheus/prometheus/cmd/prometheus,$(PROMETHEUS_VERSION),$@.new/prometheus)
	cp $$(go mod download -json sigs.k8s.io/gateway-api@$(GATEWAY_API_VERSION) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml $@.new/definitions/
	cd $$(go mod download -json github.com/prometheus-operator/prometheus-operator@$(OPERATOR_VERSION) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/example/prometheus-operator-crd && \
		cp monitoring.coreos.com_servicemonitors.yaml monitoring.coreos.com_prometheusrules.yaml $(CURDIR)/$@.new/definitions/
	@chmod -R u+w $@.new && rm -rf $@ && mv $@.new $@

# The modules of their own keep what only tests need out of go.mod.
lint: $(GOLANGCI)
	@set -e; for module in . deploy/check deploy/image/lint deploy/page helm/test; do \
		(cd $$module && $(CURDIR)/$(GOLANGCI) run --config $(CURDIR)/.golangci.yml); \
	done

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
