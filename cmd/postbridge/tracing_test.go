package main

import (
	"strings"
	"testing"
)

// TestTracingOn holds that traces are asked for by the standard names, and that what cannot be had is one line.
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
		{endpoint + "OTEL_TRACES_EXPORTER=console", false, `OTEL_TRACES_EXPORTER: "console" is not one that postbridge has; set it to otlp or none`},
		{endpoint + "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc", false, "OTEL_EXPORTER_OTLP_PROTOCOL: postbridge sends traces over HTTP; set it to http/protobuf, and the endpoint to the collector's port for that (4318)"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=user:pass@collector:4318", false, "OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL; write it like http://collector:4318"},
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

// TestParseTraceParent reads what postbridge writes into its spool.
func TestParseTraceParent(t *testing.T) {
	c, ok := parseTraceParent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if !ok || c.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || c.SpanID().String() != "b7ad6b7169203331" || !c.IsSampled() || !c.IsRemote() {
		t.Errorf("%v %+v", ok, c)
	}
	for _, text := range []string{"", "00-1-2-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		if _, ok := parseTraceParent(text); ok {
			t.Errorf("%q is a trace context", text)
		}
	}
}
