# make run, make demo and make test need only Go and make. Tests against a real Kafka also need Java and Maven.

GOLANGCI_VERSION = v2.15.0
GOLANGCI         = .tools/golangci-lint-$(GOLANGCI_VERSION)
PROMETHEUS_VERSION = v0.315.0
PROMTOOL         = .tools/promtool-$(PROMETHEUS_VERSION)
HELM_VERSION     = v4.3.1
HELM             = .tools/helm-$(HELM_VERSION)
# The Kubernetes control plane that the chart is tested on, and its monitoring.
KUBERNETES_VERSION   := $(shell sed -n 's|.*k8s.io/kubernetes \(v[0-9.]*\).*|\1|p' helm/test/tools/go.mod)
STATE_METRICS_VERSION = v2.18.0
GATEWAY_API_VERSION   = v1.6.3
OPERATOR_VERSION      = v0.94.0
KUBE             = .tools/kube$(subst v,-,$(KUBERNETES_VERSION)$(STATE_METRICS_VERSION)$(PROMETHEUS_VERSION)$(GATEWAY_API_VERSION)$(OPERATOR_VERSION))
OPERATOR         = $(KUBE)/definitions/monitoring.coreos.com_podmonitors.yaml
ACTIONLINT_VERSION = v1.7.12
ACTIONLINT       = .tools/actionlint-$(ACTIONLINT_VERSION)
FUZZTIME         = 30s

# Exports the settings of deploy/dev.env; POSTBRIDGE_ variables of the environment take precedence. A broker in the
# environment switches off the example brokers, whose secrets are public: a tunnel may lead here.
EXAMPLES = $(shell sed -n -E 's/^(POSTBRIDGE_[A-Z]+_(SECRETS|TOKENS))=.*/\1/p' deploy/dev.env)
DEV = had=$$(export -p | grep ' POSTBRIDGE_'); set -a; . deploy/dev.env; \
	for name in $(EXAMPLES); do case $$had in *" $$name="* | *" $${name}_FILE="*) unset $(EXAMPLES) ;; esac; done; \
	eval "$$had"; set +a

.PHONY: build release cross-build chart run doctor demo kafka kafka-jars kafka-or-loud python-packages test test-long image-test rules-test unit-test workflow-test deploy-test page-test helm-test kube-test lint fmt bench fuzz clean

# ---- build and try ---------------------------------------------------------------------------------------------------

build:
	@go build -o bin/postbridge ./cmd/postbridge

# Builds the binary of a release, also for deploy/Dockerfile: static and reproducible. GOOS, GOARCH and VERSION select the
# release, OUT is the output file.
OUT = bin/postbridge
release:
	@CGO_ENABLED=0 GOOS=$(GOOS) GOARCH=$(GOARCH) GOFLAGS= \
		go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o $(OUT) ./cmd/postbridge

# Builds postbridge and type-checks the tests for each supported platform. Releases contain Linux and macOS binaries.
PLATFORMS = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
cross-build:
	@set -e; export CGO_ENABLED=0; for platform in $(PLATFORMS); do \
		echo "--- $$platform"; \
		export GOOS=$${platform%/*} GOARCH=$${platform#*/}; \
		go build ./...; \
		go vet ./...; \
	done

# Packages the chart of a release. VERSION is the version of the chart and the tag of its image.
chart: $(HELM)
	@$(HELM) package helm/postbridge --version $(VERSION:v%=%) --app-version $(VERSION) --destination $(dir $(OUT))

# Runs postbridge with the example Kite app, a token for each other broker and an embedded NATS server. Data goes to data/.
run: build
	@$(DEV); exec bin/postbridge serve

# Checks what make run depends on, with the same settings, beside it or before. Exit code 3 of the doctor is a warning.
doctor: build
	@$(DEV); bin/postbridge doctor || [ $$? = 3 ]

# Run in a second shell: sends the official sample of each broker and prints its event from the bus.
demo: build
	@$(DEV); set -e; \
	for broker in kite dhan upstox fyers; do \
		echo "--- sending deploy/samples/$$broker.json"; \
		bin/postbridge send --broker $$broker deploy/samples/$$broker.json || \
			{ echo "demo: run 'make run' in another shell first" >&2; exit 1; }; \
	done; \
	echo "--- the events on the bus (postbridge tail --headers shows subject or key and headers, too)"; \
	for order in 220303000308932 112111182198 240221025997024 23071800238607; do \
		bin/postbridge tail --from start --order $$order --count 1 --timeout 10s; \
	done

# Starts Apache Kafka on KAFKA_LISTEN with its data in data/kafka, and prints how to publish to it and read it. Needs
# Java 17, and Maven once to fetch the jars.
KAFKA_LISTEN = 127.0.0.1:9092
kafka:
	@go run ./deploy/kafka -listen $(KAFKA_LISTEN)

# Fetches the jars, so that the tests need no network.
kafka-jars:
	@go run ./deploy/kafka -fetch

# Installs the packages that deploy/examples/risk.py and the programs of publishers/README.md need, for their tests.
PYTHON_PACKAGES = nats-py==2.16.0 kafka-python==3.0.12 lz4==4.4.5
python-packages: .tools/python

.tools/python: Makefile
	@rm -rf $@ && python3 -m venv $@
	@$@/bin/pip install --quiet --disable-pip-version-check $(PYTHON_PACKAGES) || { rm -rf $@; false; }
	@touch $@

# ---- check -----------------------------------------------------------------------------------------------------------

# The race detector needs a C compiler.
RACE = $$([ "$$(go env CGO_ENABLED)" = 1 ] && command -v $$(go env CC) >/dev/null && echo -race)

# Compiling takes most of the time of make test with a cold cache. Without DWARF, which go test strips anyway, and with a
# larger heap, the compiler needs 10 to 30 % less time. The flag is in GOFLAGS so that tests that run go build share the
# cache; the heap does not change the output.
FAST_BUILD = export GOFLAGS="$$(go env GOFLAGS) -gcflags=all=-dwarf=false"
FAST_TOOLS = -toolexec 'env GOGC=400'

# The linter runs vet; go test would first analyze every dependency.
GOTEST = race=$(RACE); $(FAST_BUILD); \
	[ "$$race" ] || echo "*** NO C COMPILER: TESTING WITHOUT THE RACE DETECTOR ***" >&2; \
	go test $$race $(FAST_TOOLS) -vet=off -timeout 30m

# Fetches the jars of Kafka, or reports which tests are skipped without them. The program is built with the flags of the
# tests, so that common packages are compiled once.
kafka-or-loud:
	@if command -v java >/dev/null && command -v mvn >/dev/null; then \
		$(FAST_BUILD); go run $(RACE) $(FAST_TOOLS) ./deploy/kafka -fetch || { \
			echo "*** CANNOT FETCH THE JARS OF KAFKA: TESTS THAT START A REAL KAFKA ARE SKIPPED ***" >&2; \
			[ "$$KAFKA_TEST_REQUIRED" != 1 ]; \
		}; \
	elif [ -z "$$KAFKA_TEST_BROKERS" ]; then \
		echo "*** NO JAVA OR MAVEN, AND NO KAFKA_TEST_BROKERS: TESTS AGAINST A REAL KAFKA ARE SKIPPED ***" >&2; \
		[ "$$KAFKA_TEST_REQUIRED" != 1 ]; \
	fi

# The short tests: fewer rounds and events, and one Kafka node for each package that needs a real one. Takes five minutes on
# two cores; with a cold build cache, the compiler takes more than half of them. Many tests wait more than they compute, so
# more run in parallel than there are processors. The package that takes longest comes first.
# KAFKA_TEST_REQUIRED=1 fails instead of skipping tests without a real Kafka. KAFKA_TEST_BROKERS is the address of a running
# Kafka for the tests that share one.
test: kafka-or-loud
	@n=$$(getconf _NPROCESSORS_ONLN); $(GOTEST) -short -p $$((n + 1)) -parallel $$((3 * n)) ./cmd/postbridge ./...

# All tests: every round and every fault, and Kafka clusters, also with three nodes, that are stopped, killed and secured.
# Fails if a real Kafka cannot be started, or the packages for Python cannot be installed.
test-long: export KAFKA_TEST_REQUIRED = 1
test-long: export PYTHON_TEST_REQUIRED = 1
test-long: export PATH := $(CURDIR)/.tools/python/bin:$(PATH)
test-long: kafka-or-loud python-packages
	@$(GOTEST) ./...

# Checks the image without a container engine: the rules of docker build --check, reproducible builds, both architectures,
# and the binary in a read-only, empty root as an unprivileged user. Needs Linux, and root for the namespaces.
image-test:
	@cd deploy/image/lint && go run . ../../Dockerfile
	go test -count=1 -tags image ./deploy/image

# Checks that each alert fires on its condition and only then.
rules-test: $(PROMTOOL)
	@$(PROMTOOL) check rules deploy/prometheus/rules.yaml
	@$(PROMTOOL) test rules deploy/prometheus/rules_test.yaml

# Checks the syntax and the sandboxing of the systemd units. postbridge need not be installed.
unit-test:
	@if ! command -v systemd-analyze >/dev/null; then \
		echo "*** NO SYSTEMD-ANALYZE: THE UNIT FILES ARE NOT CHECKED ***" >&2; exit; \
	fi; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	for unit in deploy/systemd/*.service; do \
		copy=$$dir/$${unit##*/}; \
		sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$$unit" >"$$copy"; \
		output=$$(systemd-analyze verify "$$copy" 2>&1) && [ -z "$$output" ] || { echo "$$output" >&2; exit 1; }; \
		systemd-analyze security --offline=yes --threshold=20 "$$copy" >"$$dir/output" || { cat "$$dir/output" >&2; exit 1; }; \
		tail -n 1 "$$dir/output"; \
	done

# Lints the GitHub workflows, and the scripts in them if shellcheck is installed.
workflow-test: $(ACTIONLINT)
	@$(ACTIONLINT) .github/workflows/*.yaml

$(ACTIONLINT):
	GOBIN=$(CURDIR)/.tools go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)
	@mv .tools/actionlint $@

# Checks the files for Compose, Prometheus and Grafana without a container engine: the parsers of Compose and Prometheus
# accept them, postbridge accepts its settings, and every file and metric they name exists. Runs nginx and Caddy if they are
# installed, with the files in deploy/proxy.
deploy-test: $(PROMTOOL)
	@$(PROMTOOL) check config deploy/prometheus/prometheus.yaml
	@command -v nginx >/dev/null || echo "*** NO NGINX: deploy/proxy/nginx.conf IS NOT TESTED ***" >&2
	@command -v caddy >/dev/null || echo "*** NO CADDY: deploy/proxy/Caddyfile IS NOT TESTED ***" >&2
	cd deploy/check && go test -count=1 ./...

# Tests the status page in a real browser. SHOTS is a directory for screenshots.
page-test:
	@if ! { command -v chromium || command -v google-chrome; } >/dev/null; then \
		echo "*** NO CHROMIUM: THE TESTS OF THE PAGE ARE SKIPPED ***" >&2; \
		[ "$$PAGE_TEST_REQUIRED" != 1 ]; exit; \
	fi; \
	cd deploy/page && go test -count=1 . $(if $(SHOTS),-shots $(abspath $(SHOTS)))

# Tests the chart without running it: helm lint, and its manifests for all examples and many values, which a real API server
# has to accept. Compares its README and schema with its values.
helm-test: $(HELM) $(KUBE) $(OPERATOR) $(PROMTOOL)
	cd helm/test && HELM=$(CURDIR)/$(HELM) PROMTOOL=$(CURDIR)/$(PROMTOOL) KUBE_TOOLS=$(CURDIR)/$(KUBE) go test -count=1 ./render

# Tests the chart running: installs, upgrades, scales and breaks it on a real control plane whose pods are local processes.
# Needs Linux, and root for the namespaces.
kube-test: $(HELM) $(KUBE) $(OPERATOR) kafka-or-loud
	cd helm/test && HELM=$(CURDIR)/$(HELM) KUBE_TOOLS=$(CURDIR)/$(KUBE) go test -count=1 -timeout 20m -parallel 4 $(if $(RUN),-v -run '$(RUN)') ./kube

$(HELM):
	GOBIN=$(CURDIR)/.tools go install helm.sh/helm/v4/cmd/helm@$(HELM_VERSION)
	@mv .tools/helm $@

# $(call install,package,version,file) builds a program that go install refuses, since its module has replace directives.
install = mkdir -p $(dir $(3)); dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir" && go mod init tool 2>/dev/null && \
	{ go get $(1)@$(2) 2>errors || { cat errors >&2; false; }; } && go build -o $(CURDIR)/$(3) $(1)

$(PROMTOOL):
	@$(call install,github.com/prometheus/prometheus/cmd/promtool,$(PROMETHEUS_VERSION),$@)

# helm/test/tools/go.mod pins the versions of Kubernetes. The directory exists only once it is complete.
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
	@chmod -R u+w $@.new && rm -rf $@ && mv $@.new $@

# The resource definitions of the Prometheus operator that the chart makes objects of.
$(OPERATOR): | $(KUBE)
	cd $$(go mod download -json github.com/prometheus-operator/prometheus-operator@$(OPERATOR_VERSION) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/example/prometheus-operator-crd && \
		for kind in service pod; do cp monitoring.coreos.com_$${kind}monitors.yaml $(CURDIR)/$(KUBE)/definitions/; done && \
		cp monitoring.coreos.com_prometheusrules.yaml $(CURDIR)/$(KUBE)/definitions/
	@chmod -R u+w $(KUBE)/definitions && touch $@

# Tests with many dependencies are modules of their own, to keep those out of go.mod.
lint: $(GOLANGCI)
	@set -e; for module in . deploy/check deploy/image/lint deploy/page helm/test; do \
		(cd $$module && $(CURDIR)/$(GOLANGCI) run --config $(CURDIR)/.golangci.yml); \
	done

fmt: $(GOLANGCI)
	@$(GOLANGCI) fmt

$(GOLANGCI):
	GOBIN=$(CURDIR)/.tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv .tools/golangci-lint $@

# Runs every fuzz target for FUZZTIME.
fuzz:
	@set -e; for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "--- $$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

# Compares postbridge with a bare HTTP server in one run: ratios hold on any machine, requests per second do not.
bench:
	@go run ./deploy/bench

clean:
	@rm -rf bin .tools .bench-*
