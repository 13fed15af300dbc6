package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/postbridge/postbridge/bridge"
)

// flushLimit is how long the end may take to deliver the last spans.
const flushLimit = 2 * time.Second

// tracingOn reports whether the environment names somebody to send traces to, in the standard names of OpenTelemetry,
// which its SDK reads itself. The error is a misuse: what is asked for and cannot be had.
func tracingOn(environ map[string]string) (bool, error) {
	of := func(name string) string { return strings.ToLower(strings.TrimSpace(environ[name])) }
	ofExporter := func(setting string) (name, value string) {
		if value = of("OTEL_EXPORTER_OTLP_TRACES_" + setting); value != "" {
			return "OTEL_EXPORTER_OTLP_TRACES_" + setting, value
		}
		return "OTEL_EXPORTER_OTLP_" + setting, of("OTEL_EXPORTER_OTLP_" + setting)
	}
	name, endpoint := ofExporter("ENDPOINT")
	if endpoint == "" || of("OTEL_SDK_DISABLED") == "true" || of("OTEL_TRACES_EXPORTER") == "none" {
		return false, nil
	}
	if exporter := orElse(of("OTEL_TRACES_EXPORTER"), "otlp"); exporter != "otlp" {
		return false, misuse("OTEL_TRACES_EXPORTER: %q is not one that postbridge has; set it to otlp or none", exporter)
	}
	if name, protocol := ofExporter("PROTOCOL"); !slices.Contains([]string{"", "http/protobuf", "http/json"}, protocol) {
		return false, misuse("%s: postbridge sends traces over HTTP; set it to http/protobuf, and the endpoint to the collector's port for that (4318)", name)
	}
	if u, err := url.Parse(endpoint); err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return false, misuse("%s: is not a URL; write it like http://collector:4318", name) // it may have a password in it
	}
	for _, name := range []string{"OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"} {
		// The SDK takes any number for these, and then panics, runs out of memory or never rests.
		text := of(name)
		if n, err := strconv.Atoi(text); text != "" && (err != nil || n < 1 || n > 1e6) {
			return false, misuse("%s: %q is not a whole number from 1 to 1000000", name, text)
		}
	}
	return true, nil
}

// complaints are what the SDK has to say of the environment while it is set up, where it would go on without the setting.
// It says it with the value, which may be a secret; only what is wrong is kept of it.
type complaints struct{ first atomic.Pointer[string] }

// Init, Enabled, Info, Error, WithValues and WithName make it the SDK's logger.
func (*complaints) Init(logr.RuntimeInfo)                  {}
func (*complaints) Enabled(int) bool                       { return false } // nothing but errors
func (*complaints) Info(int, string, ...any)               {}
func (c *complaints) Error(_ error, text string, _ ...any) { c.first.CompareAndSwap(nil, &text) }
func (c *complaints) WithValues(...any) logr.LogSink       { return c }
func (c *complaints) WithName(string) logr.LogSink         { return c }

// Handle makes it the SDK's handler of errors.
func (c *complaints) Handle(err error) { c.Error(err, err.Error()) }

// openTracer makes the tracer, or nil if the environment asks for none. What is sent to it waits in a queue that is
// bounded; what finds no room there, or the collector does not take, is dropped. end delivers what waits, for a moment.
func (p *process) openTracer(registry prometheus.Registerer, log *slog.Logger) (t bridge.Tracer, end func(), err error) {
	on, err := tracingOn(p.env)
	if !on || err != nil {
		return nil, func() {}, err
	}
	ctx := context.Background()
	said := new(complaints)
	otel.SetLogger(logr.New(said))
	otel.SetErrorHandler(said)
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, misuse("traces cannot be sent as OTEL_EXPORTER_OTLP_ENDPOINT says: %v", err)
	}
	version, _, _ := strings.Cut(buildVersion(), " ")
	// What the environment says of the program wins.
	who, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "postbridge"), attribute.String("service.version", version)),
		resource.WithFromEnv())
	if err != nil {
		return nil, nil, misuse("OTEL_RESOURCE_ATTRIBUTES: %v", err)
	}
	s := &spans{SpanExporter: exporter, log: log}
	s.register(registry)
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(s), sdktrace.WithResource(who))
	if text := said.first.Load(); text != nil {
		return nil, nil, misuse("an OTEL_ setting is not one that OpenTelemetry can use: %s", *text)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry", "error", err) }))
	log.Info("traces go to the collector of OTEL_EXPORTER_OTLP_ENDPOINT")
	return &tracer{provider.Tracer("github.com/postbridge/postbridge"), s}, func() {
		ctx, stop := context.WithTimeout(ctx, flushLimit)
		defer stop()
		_ = provider.Shutdown(ctx) // what it could not deliver is counted
		if dropped := s.ended.Load() - s.delivered.Load(); dropped > 0 {
			log.Warn("spans were dropped", "spans", dropped)
		}
	}, nil
}

// checkTracing makes the tracer that serve would make, and ends it.
func (p *process) checkTracing() error {
	_, end, err := p.openTracer(prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err == nil {
		end()
	}
	return err
}

// spans are on their way to the collector. It counts them, and says when they begin and cease to be taken.
type spans struct {
	sdktrace.SpanExporter
	log              *slog.Logger
	ended, delivered atomic.Int64

	mu      sync.Mutex
	failing bool // guarded by mu
}

// ExportSpans sends some. It has no error: whoever calls it could only log that each time.
func (s *spans) ExportSpans(ctx context.Context, some []sdktrace.ReadOnlySpan) error {
	err := s.SpanExporter.ExportSpans(ctx, some)
	if err == nil {
		s.delivered.Add(int64(len(some)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && !s.failing:
		text := err.Error() // may have in it what the collector answered
		s.log.Warn("traces cannot be delivered, and are dropped; postbacks and events are not concerned", "error", text[:min(len(text), 300)])
	case err == nil && s.failing:
		s.log.Info("traces are delivered again")
	}
	s.failing = err != nil
	return nil
}

func (s *spans) register(registry prometheus.Registerer) {
	for _, of := range []struct {
		name, help string
		n          *atomic.Int64
	}{
		{"ended", "Spans that were to be recorded. What is not delivered within seconds is dropped.", &s.ended},
		{"delivered", "Spans that the collector took.", &s.delivered},
	} {
		registry.MustRegister(prometheus.NewCounterFunc(
			prometheus.CounterOpts{Name: "postbridge_spans_" + of.name + "_total", Help: of.help},
			func() float64 { return float64(of.n.Load()) },
		))
	}
}

// tracer makes spans of what the bridge tells it.
type tracer struct {
	trace.Tracer
	spans *spans
}

// Request begins a trace: what a postback brings along of one is nobody's to be trusted with.
func (t *tracer) Request(broker string, arrival time.Time) bridge.RequestSpan {
	_, span := t.Start(context.Background(), "POST /"+broker, trace.WithNewRoot(), trace.WithTimestamp(arrival),
		trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(known("http.request.method", "POST", "http.route", "/"+broker, "postbridge.broker", broker)...)) // without the token
	return &requestSpan{span, t.spans}
}

type requestSpan struct {
	trace.Span
	spans *spans
}

// TraceParent writes the span's context as W3C has it.
func (s *requestSpan) TraceParent() string {
	c := s.SpanContext()
	return fmt.Sprintf("00-%s-%s-%02x", c.TraceID(), c.SpanID(), byte(c.TraceFlags()&trace.FlagsSampled))
}

// End ends the span.
func (s *requestSpan) End(o bridge.RequestOutcome) {
	if !s.IsRecording() {
		return
	}
	s.SetAttributes(attribute.Int("http.response.status_code", o.Status))
	s.SetAttributes(known("postbridge.fate", o.Fate, "postbridge.refused.reason", o.Reason,
		"postbridge.event.id", o.EventID, "postbridge.order.id", shortened(o.OrderID))...)
	if o.Status >= 500 {
		s.SetStatus(codes.Error, "")
	}
	s.spans.ended.Add(1)
	s.Span.End()
}

// Publish makes the span of an event's way to a bus. It belongs to the trace of the request and is sampled as that was, and
// it is linked to its span, too: they may be hours apart.
func (t *tracer) Publish(p bridge.Publication) {
	request, ok := parseTraceParent(p.TraceParent)
	if !ok {
		return
	}
	destination := string(p.Destinations()[0])
	if p.Fate == "deadlettered" { // one that the bus refused was meant for orders
		destination = string(bridge.Deadletters)
	}
	_, span := t.Start(trace.ContextWithRemoteSpanContext(context.Background(), request), "publish "+destination,
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithTimestamp(p.Offered), trace.WithLinks(trace.Link{SpanContext: request}),
		trace.WithAttributes(known("messaging.system", p.Bus, "messaging.operation.type", "send",
			"messaging.destination.name", destination, "postbridge.broker", p.Broker, "postbridge.event.id", p.ID,
			"postbridge.order.id", shortened(p.OrderID), "postbridge.fate", p.Fate)...),
		trace.WithAttributes(attribute.Int64("postbridge.sequence", int64(p.Sequence))))
	if p.Fate == "quarantined" {
		span.SetStatus(codes.Error, "the bus can take it nowhere")
	}
	if span.IsRecording() {
		t.spans.ended.Add(1)
		span.End(trace.WithTimestamp(p.Done))
	}
}

// known are attributes, names and values in turn, of which those without a value are left out.
func known(namesAndValues ...string) (all []attribute.KeyValue) {
	for i := 0; i < len(namesAndValues); i += 2 {
		if namesAndValues[i+1] != "" {
			all = append(all, attribute.String(namesAndValues[i], namesAndValues[i+1]))
		}
	}
	return all
}

// shortened is an id for a span, which may wait for a collector that is down: no longer than those of brokers are, and no
// part of the postback, which it would keep in memory.
func shortened(id string) string {
	return strings.Clone(strings.ToValidUTF8(id[:min(len(id), 256)], ""))
}

// parseTraceParent reads the trace context that postbridge wrote into its spool.
func parseTraceParent(text string) (trace.SpanContext, bool) {
	parts := strings.Split(text, "-")
	if len(parts) != 4 {
		return trace.SpanContext{}, false
	}
	traceID, err1 := trace.TraceIDFromHex(parts[1])
	spanID, err2 := trace.SpanIDFromHex(parts[2])
	c := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled, Remote: true, // others are not told of
	})
	return c, err1 == nil && err2 == nil
}
