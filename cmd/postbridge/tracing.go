package main

import (
	"cmp"
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
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/postbridge/postbridge/bridge"
)

// flushLimit is the time limit for exporting the last spans at the end.
const flushLimit = 2 * time.Second

// tracingOn reports whether the environment has an OTLP endpoint, in the standard names of OpenTelemetry, which its SDK
// reads itself. The error is a misuse: a setting that is not supported.
func tracingOn(environ map[string]string) (bool, error) {
	value := func(name string) string { return strings.ToLower(strings.TrimSpace(environ[name])) }
	exporterSetting := func(suffix string) (name, v string) {
		name = "OTEL_EXPORTER_OTLP_TRACES_" + suffix
		if value(name) == "" {
			name = "OTEL_EXPORTER_OTLP_" + suffix
		}
		return name, value(name)
	}
	name, endpoint := exporterSetting("ENDPOINT")
	if endpoint == "" || value("OTEL_SDK_DISABLED") == "true" || value("OTEL_TRACES_EXPORTER") == "none" {
		return false, nil
	}
	if exporter := cmp.Or(value("OTEL_TRACES_EXPORTER"), "otlp"); exporter != "otlp" {
		return false, misuse("OTEL_TRACES_EXPORTER: %q is not supported; set it to otlp or none", exporter)
	}
	protocolName, protocol := exporterSetting("PROTOCOL")
	if !slices.Contains([]string{"", "http/protobuf", "http/json"}, protocol) {
		return false, misuse("%s: postbridge exports traces over HTTP; set it to http/protobuf, "+
			"and the endpoint to the collector's port for that (4318)", protocolName)
	}
	if u, err := url.Parse(endpoint); err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return false, misuse("%s: is not a URL; write it like http://collector:4318", name) // it may contain a password
	}
	for _, suffix := range []string{"MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE", "SCHEDULE_DELAY", "EXPORT_TIMEOUT"} {
		// The SDK accepts any number, and then panics, runs out of memory or spins.
		name := "OTEL_BSP_" + suffix
		text := value(name)
		if n, err := strconv.Atoi(text); text != "" && (err != nil || n < 1 || n > 1e6) {
			return false, misuse("%s: %q is not a whole number from 1 to 1000000", name, text)
		}
	}
	return true, nil
}

// setupError is the SDK's logger during its setup. It keeps the first error, after which the SDK would ignore the
// setting. Of the error it keeps the message only: the rest has the value, which may be a secret.
type setupError struct {
	logr.LogSink // discards everything but errors
	first        atomic.Pointer[string]
}

// Error implements logr.LogSink.
func (c *setupError) Error(_ error, text string, _ ...any) { c.first.CompareAndSwap(nil, &text) }

// Handle implements otel.ErrorHandler.
func (c *setupError) Handle(err error) { c.Error(err, err.Error()) }

// openTracer returns the tracer, nil if tracing is off. Spans wait in a bounded queue; those that do not fit, or that
// the collector does not accept, are dropped. end exports the queue within flushLimit.
func (p *process) openTracer(
	registry prometheus.Registerer, log *slog.Logger,
) (t bridge.Tracer, end func(), err error) {
	on, err := tracingOn(p.env)
	if !on || err != nil {
		return nil, func() {}, err
	}
	ctx := context.Background()
	setup := &setupError{LogSink: logr.FromSlogHandler(slog.DiscardHandler).GetSink()}
	otel.SetLogger(logr.New(setup))
	otel.SetErrorHandler(setup)
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, misuse("OTEL_EXPORTER_OTLP_ENDPOINT: cannot export traces to it: %v", err)
	}
	service, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "postbridge"),
			attribute.String("service.version", readBuild().version)),
		resource.WithFromEnv()) // overrides the attributes above
	if err != nil {
		return nil, nil, misuse("OTEL_RESOURCE_ATTRIBUTES: %v", err)
	}
	s := &spans{SpanExporter: exporter, log: log}
	s.register(registry)
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(s), sdktrace.WithResource(service))
	if text := setup.first.Load(); text != nil {
		return nil, nil, misuse("OpenTelemetry rejects an OTEL_ setting: %s", *text)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry", "error", err) }))
	log.Info("exporting traces to OTEL_EXPORTER_OTLP_ENDPOINT")
	return &tracer{provider.Tracer("github.com/postbridge/postbridge"), s}, func() {
		ctx, stop := context.WithTimeout(ctx, flushLimit)
		defer stop()
		_ = provider.Shutdown(ctx) // dropped spans are counted
		if dropped := s.ended.Load() - s.delivered.Load(); dropped > 0 {
			log.Warn("spans were dropped", "spans", dropped)
		}
	}, nil
}

// checkTracing opens and closes the tracer of serve, to check its settings.
func (p *process) checkTracing() error {
	_, end, err := p.openTracer(prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err == nil {
		end()
	}
	return err
}

// spans exports spans to the collector. It counts them, and logs when exports begin to fail and recover.
type spans struct {
	sdktrace.SpanExporter
	log              *slog.Logger
	ended, delivered atomic.Int64

	mu      sync.Mutex
	failing bool // guarded by mu
}

// ExportSpans exports a batch. It returns no error, which the SDK would log each time.
func (s *spans) ExportSpans(ctx context.Context, batch []sdktrace.ReadOnlySpan) error {
	err := s.SpanExporter.ExportSpans(ctx, batch)
	if err == nil {
		s.delivered.Add(int64(len(batch)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && !s.failing:
		text := err.Error() // may include the answer of the collector
		s.log.Warn("cannot export traces; spans are dropped, postbacks and events are not affected",
			"error", text[:min(len(text), 300)])
	case err == nil && s.failing:
		s.log.Info("exporting traces again")
	}
	s.failing = err != nil
	return nil
}

func (s *spans) register(registry prometheus.Registerer) {
	counter := func(name, help string, n *atomic.Int64) {
		o := prometheus.CounterOpts{Name: name, Help: help}
		registry.MustRegister(prometheus.NewCounterFunc(o, func() float64 { return float64(n.Load()) }))
	}
	counter("postbridge_spans_ended_total",
		"Sampled spans that ended. Those not delivered within seconds are dropped.", &s.ended)
	counter("postbridge_spans_delivered_total", "Spans that the collector accepted.", &s.delivered)
}

// tracer implements bridge.Tracer with spans.
type tracer struct {
	trace.Tracer
	spans *spans
}

// Request starts a trace. The trace context of a postback is not trusted. The route has no token.
func (t *tracer) Request(broker string, arrival time.Time) bridge.RequestSpan {
	route := "/" + broker
	_, span := t.Start(context.Background(), "POST "+route, trace.WithNewRoot(), trace.WithTimestamp(arrival),
		trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(nonEmpty(
			"http.request.method", "POST", "http.route", route, "postbridge.broker", broker)...))
	return &requestSpan{span, t.spans}
}

type requestSpan struct {
	trace.Span
	spans *spans
}

// TraceParent returns the span's context as a W3C traceparent.
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
	s.SetAttributes(nonEmpty("postbridge.fate", o.Fate, "postbridge.refused.reason", o.Reason,
		"postbridge.event.id", o.EventID, "postbridge.order.id", shortID(o.OrderID))...)
	if o.Status >= 500 {
		s.SetStatus(codes.Error, "")
	}
	s.spans.ended.Add(1)
	s.Span.End()
}

// Publish records the span from the first offer of an event to a bus until it was stored. It is a child of the
// request's span, sampled with it, and linked to it, since they may be hours apart.
func (t *tracer) Publish(p bridge.Publication) {
	request := parseTraceParent(p.TraceParent)
	if !request.IsValid() {
		return
	}
	destination := string(p.Destinations()[0])
	if p.Fate == "deadlettered" { // an event that the bus rejected has another destination
		destination = string(bridge.Deadletters)
	}
	_, span := t.Start(trace.ContextWithRemoteSpanContext(context.Background(), request), "publish "+destination,
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithTimestamp(p.Offered),
		trace.WithLinks(trace.Link{SpanContext: request}),
		trace.WithAttributes(nonEmpty("messaging.system", p.Bus, "messaging.operation.type", "send",
			"messaging.destination.name", destination, "postbridge.broker", p.Broker, "postbridge.event.id", p.ID,
			"postbridge.order.id", shortID(p.OrderID), "postbridge.fate", p.Fate)...),
		trace.WithAttributes(attribute.Int64("postbridge.sequence", int64(p.Sequence))))
	if p.Fate == "quarantined" {
		span.SetStatus(codes.Error, "the bus accepts it nowhere")
	}
	if span.IsRecording() {
		t.spans.ended.Add(1)
		span.End(trace.WithTimestamp(p.Done))
	}
}

// nonEmpty returns attributes of alternating names and values, without those of empty value.
func nonEmpty(namesAndValues ...string) (all []attribute.KeyValue) {
	for pair := range slices.Chunk(namesAndValues, 2) {
		if pair[1] != "" {
			all = append(all, attribute.String(pair[0], pair[1]))
		}
	}
	return all
}

// shortID returns a bounded copy of an id: a queued span must not keep its postback in memory.
func shortID(id string) string {
	return strings.Clone(strings.ToValidUTF8(id[:min(len(id), 256)], ""))
}

// parseTraceParent parses the traceparent in the spool.
func parseTraceParent(text string) trace.SpanContext {
	carrier := propagation.MapCarrier{"traceparent": text}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}
