package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// aCollector is the key of the collector among the values of a story.
type aCollector struct{}

// storyCollector is a collector of OpenTelemetry that a story has, over HTTP.
type storyCollector struct {
	mu    sync.Mutex
	spans []*tracepb.Span // guarded by mu
	who   string          // what the last ones say of the program; guarded by mu
	wrong string          // guarded by mu
}

func collectorOf(ts *testscript.TestScript) *storyCollector {
	return ts.Value(aCollector{}).(*storyCollector)
}

// cmdCollector starts the collector and points the programs of the story to it. With "hangs" it takes requests and
// never answers.
func cmdCollector(ts *testscript.TestScript, _ bool, args []string) {
	var handler http.Handler = collectorOf(ts)
	if len(args) > 0 && args[0] == "hangs" {
		handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
	}
	server := httptest.NewServer(handler)
	ts.Defer(func() {
		server.CloseClientConnections()
		server.Close()
	})
	ts.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	ts.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
}

func (c *storyCollector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	var sent collectorpb.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &sent)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		c.wrong = fmt.Sprintf("%s %s: %v", r.Method, r.URL, err)
	}
	for _, of := range sent.ResourceSpans {
		c.who = attributes(of.Resource.GetAttributes())
		for _, scope := range of.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
}

// cmdTraced waits for so many spans since the story began, and prints them, each a line in which other spans have a
// name, in the order in which they began: traced COUNT.
func cmdTraced(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	c := collectorOf(ts)
	eventually(ts, args[0]+" spans", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.spans) != want || c.wrong != "" {
			return fmt.Errorf("there are %d %s", len(c.spans), c.wrong)
		}
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.spans, func(a, b *tracepb.Span) int {
		return int(a.StartTimeUnixNano) - int(b.StartTimeUnixNano)
	})
	names := make(map[string]string)
	for i, s := range c.spans {
		names[string(s.SpanId)] = fmt.Sprintf("%d", i+1)
	}
	var lines strings.Builder
	for i, s := range c.spans {
		fmt.Fprintf(&lines, "%d %s %s 00-%x-%x-01", i+1, s.Kind, s.Name, s.TraceId, s.SpanId)
		if len(s.ParentSpanId) > 0 {
			fmt.Fprintf(&lines, " child of %s", names[string(s.ParentSpanId)])
		}
		for _, l := range s.Links {
			fmt.Fprintf(&lines, " linked to %s", names[string(l.SpanId)])
		}
		if s.EndTimeUnixNano < s.StartTimeUnixNano {
			ts.Fatalf("%s ends before it begins", s.Name)
		}
		fmt.Fprintf(&lines, " %s%s\n", s.Status.GetCode(), attributes(s.Attributes))
	}
	_, err = fmt.Fprintf(ts.Stdout(), "%sof%s\n", &lines, c.who)
	ts.Check(err)
}

func attributes(all []*commonpb.KeyValue) string {
	var b strings.Builder
	for _, a := range all {
		value := a.Value.GetStringValue()
		if n, ok := a.Value.Value.(*commonpb.AnyValue_IntValue); ok {
			value = strconv.FormatInt(n.IntValue, 10)
		}
		fmt.Fprintf(&b, " %s=%s", a.Key, value)
	}
	return b.String()
}
