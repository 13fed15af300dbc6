package main

import (
	"runtime"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/postbridge/postbridge/bridge"
)

// TestTracingOn checks the standard names, and that an unsupported setting is one line.
func TestTracingOn(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 "
	for _, test := range []struct {
		environ string
		on      bool
		misuse  string
	}{
		{"", false, ""},
		{"OTEL_TRACES_SAMPLER=always_on OTEL_EXPORTER_OTLP_PROTOCOL=grpc", false, ""},
		{endpoint, true, ""},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://collector/v1/traces", true, ""},
		{endpoint + "OTEL_SDK_DISABLED=TRUE", false, ""},
		{endpoint + "OTEL_TRACES_EXPORTER=none", false, ""},
		{endpoint + "OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", true, ""},
		{endpoint + "OTEL_TRACES_EXPORTER=console", false,
			`OTEL_TRACES_EXPORTER: "console" is not supported; set it to otlp or none`},
		{endpoint + "OTEL_EXPORTER_OTLP_PROTOCOL=http/json", true, ""},
		{endpoint + "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc", false,
			"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: postbridge exports traces over HTTP; set it to http/protobuf, and " +
				"the endpoint to the collector's port for that (4318)"},
		{endpoint + "OTEL_EXPORTER_OTLP_PROTOCOL=http", false,
			"OTEL_EXPORTER_OTLP_PROTOCOL: postbridge exports traces over HTTP; set it to http/protobuf, and the " +
				"endpoint to the collector's port for that (4318)"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=user:pass@collector:4318", false,
			"OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL; write it like http://collector:4318"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://user:p%zz@collector:4318", false,
			"OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL; write it like http://collector:4318"},
		{endpoint + "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://:4318", false,
			"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: is not a URL; write it like http://collector:4318"},
		{endpoint + "OTEL_BSP_MAX_QUEUE_SIZE=4096 OTEL_BSP_SCHEDULE_DELAY=1", true, ""},
		{endpoint + "OTEL_BSP_MAX_QUEUE_SIZE=-1", false,
			`OTEL_BSP_MAX_QUEUE_SIZE: "-1" is not a whole number from 1 to 1000000`},
		{endpoint + "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=99999999999", false,
			`OTEL_BSP_MAX_EXPORT_BATCH_SIZE: "99999999999" is not a whole number from 1 to 1000000`},
		{endpoint + "OTEL_BSP_SCHEDULE_DELAY=0", false,
			`OTEL_BSP_SCHEDULE_DELAY: "0" is not a whole number from 1 to 1000000`},
		{endpoint + "OTEL_BSP_EXPORT_TIMEOUT=10s", false,
			`OTEL_BSP_EXPORT_TIMEOUT: "10s" is not a whole number from 1 to 1000000`},
	} {
		environ := make(map[string]string)
		for _, of := range strings.Fields(test.environ) {
			name, value, _ := strings.Cut(of, "=")
			environ[name] = value
		}
		on, err := tracingOn(environ)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if on != test.on || text != test.misuse {
			t.Errorf("%s: %v, %q", test.environ, on, text)
		}
	}
}

// TestTracingMisuse has settings that the SDK would ignore, and print with the secret in them.
func TestTracingMisuse(t *testing.T) {
	for _, test := range []struct{ setting, misuse string }{
		{"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20s3cret", ""},
		{"OTEL_EXPORTER_OTLP_HEADERS=Authorization Bearer s3cret", "parse headers"},
		{"OTEL_EXPORTER_OTLP_TRACES_HEADERS=api-key=s3cret%zz", "escape header value"},
		{"OTEL_EXPORTER_OTLP_TIMEOUT=10s", "parse duration"},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE=/nowhere", "read tls ca cert file"},
		{"OTEL_TRACES_SAMPLER=often", "unsupported sampler: often"},
	} {
		t.Run(test.setting, func(t *testing.T) {
			const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
			t.Setenv(endpoint, "https://127.0.0.1:1")
			name, value, _ := strings.Cut(test.setting, "=")
			t.Setenv(name, value)
			p := &process{env: map[string]string{endpoint: "https://127.0.0.1:1", name: value}}
			want := ""
			if test.misuse != "" {
				want = "OpenTelemetry rejects an OTEL_ setting: " + test.misuse
			}
			got := ""
			if err := p.checkTracing(); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// TestSpansAreSmall checks that queued spans keep no memory of their postbacks.
func TestSpansAreSmall(t *testing.T) {
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(tracetest.NewNoopExporter(),
		sdktrace.WithBatchTimeout(time.Hour), sdktrace.WithMaxExportBatchSize(2048)))
	defer func() { _ = provider.Shutdown(t.Context()) }()
	tracer := &tracer{provider.Tracer(""), new(spans)}
	before := heap()
	for range 1000 {
		body := strings.Repeat("9", 64<<10)
		tracer.Request("dhan", time.Now()).End(bridge.RequestOutcome{Status: 200, Fate: "accepted", OrderID: body[:12]})
		tracer.Request("dhan", time.Now()).End(bridge.RequestOutcome{Status: 200, Fate: "accepted", OrderID: body})
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("2000 spans keep %d bytes", grown)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestParseTraceParent parses the traceparent in the spool.
func TestParseTraceParent(t *testing.T) {
	c := parseTraceParent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if c.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" ||
		c.SpanID().String() != "b7ad6b7169203331" || !c.IsSampled() || !c.IsRemote() {
		t.Errorf("%+v", c)
	}
	for _, text := range []string{"", "00-1-2-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		if parseTraceParent(text).IsValid() {
			t.Errorf("%q is a trace context", text)
		}
	}
}
