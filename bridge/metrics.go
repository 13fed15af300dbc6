package bridge

import (
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// fate is the outcome of a postback: received = accepted + repeated + other + refused + failed, once none is in
// flight.
type fate int

const (
	accepted fate = iota // on disk
	repeated             // a repeat of the order's last event; on disk already
	other                // recognized, and no order update; on disk
	refused              // not verified, or unreadable
	failed               // verified, but not stored: answered 503
	numFates
)

func (f fate) String() string {
	return [...]string{"accepted", "repeated", "other", "refused", "failed"}[f]
}

// busFate is the outcome of a sequence number on a bus: committed = stored + deadlettered + quarantined + skipped.
type busFate int

const (
	stored       busFate = iota // in all its destinations; for no order update that is deadletters
	deadlettered                // in deadletters: not understood, or refused by the bus
	quarantined                 // in the quarantine file: the bus rejects it in every destination
	skipped                     // no record: damaged, or removed before this bus was added
	numBusFates
)

func (f busFate) String() string {
	return [...]string{"stored", "deadlettered", "quarantined", "skipped"}[f]
}

// ingestMetrics holds the metrics of the receiver.
type ingestMetrics struct {
	brokers       map[string]*brokerMetrics // complete before the first postback
	refused       *prometheus.CounterVec
	limited       *prometheus.CounterVec
	bad           *prometheus.CounterVec
	answerSeconds prometheus.Histogram
	page          prometheus.Gatherer // refused and answerSeconds alone
}

// brokerMetrics counts the postbacks of one broker.
type brokerMetrics struct {
	received atomic.Uint64
	fates    [numFates]atomic.Uint64
}

func newIngestMetrics(r prometheus.Registerer) *ingestMetrics {
	m := &ingestMetrics{
		brokers: make(map[string]*brokerMetrics),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postbridge_refused_total",
			Help: "Postbacks rejected by verification or with an unreadable body, by reason.",
		}, []string{"broker", "reason"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postbridge_limited_total",
			Help: "Refused postbacks that were answered 429, because too many from their address were refused.",
		}, []string{"broker"}),
		bad: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postbridge_bad_requests_total",
			Help: "Connections to POSTBRIDGE_LISTEN that ended with invalid HTTP or TLS, by reason.",
		}, []string{"reason"}),
		answerSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "postbridge_answer_seconds",
			Help:    "Time from the arrival of a postback to its answer.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	r.MustRegister(m.refused, m.limited, m.bad, m.answerSeconds)
	for reason := range remedies() {
		m.bad.WithLabelValues(reason) // so that 0 is exported, too
	}
	page := prometheus.NewRegistry()
	page.MustRegister(m.refused, m.answerSeconds)
	m.page = page
	return m
}

// answerTimes is the histogram of the time to the answer.
type answerTimes struct {
	Count   uint64        `json:"count"`
	Buckets []timesBucket `json:"buckets"` // by ascending time
}

// timesBucket counts the answers within a time.
type timesBucket struct {
	Seconds float64 `json:"seconds"`
	Count   uint64  `json:"count"`
}

// figures returns the time to the answer, and the refusals by broker and reason.
func (m *ingestMetrics) figures() (t answerTimes, refusals map[string]map[string]uint64, err error) {
	families, err := m.page.Gather()
	refusals = make(map[string]map[string]uint64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if h := metric.GetHistogram(); h != nil {
				t.Count = h.GetSampleCount()
				for _, b := range h.GetBucket() {
					t.Buckets = append(t.Buckets, timesBucket{b.GetUpperBound(), b.GetCumulativeCount()})
				}
				continue
			}
			by := make(map[string]string)
			for _, l := range metric.GetLabel() {
				by[l.GetName()] = l.GetValue()
			}
			if refusals[by["broker"]] == nil {
				refusals[by["broker"]] = make(map[string]uint64)
			}
			refusals[by["broker"]][by["reason"]] = uint64(metric.GetCounter().GetValue())
		}
	}
	return t, refusals, err
}

// broker adds a broker and returns its counters, which begin at 0.
func (m *ingestMetrics) broker(name string) *brokerMetrics {
	b := new(brokerMetrics)
	m.brokers[name] = b
	m.limited.WithLabelValues(name) // so that 0 is exported, too
	return b
}

// collector exports the state of the bridge at the moment of the scrape.
type collector struct{ b *Bridge }

// Describe describes nothing: which metrics there are depends on the state of the spool.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect exports the state now.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	export := exporter(ch)
	for name, m := range c.b.metrics.brokers {
		// A postback in flight is received and has no fate yet, so received is read last.
		for f := range numFates {
			export.counter("postbacks_total", "Postbacks, by fate.", m.fates[f].Load(),
				"broker", name, "fate", f.String())
		}
		export.counter("received_total", "Requests to a broker's routes.", m.received.Load(), "broker", name)
	}
	st := c.b.status()
	export.gauge("ready", "1 if the spool accepts postbacks.", oneIf(st.Ready))
	if l := c.b.ingest.Load(); l != nil {
		export.gauge("connections", "Open connections at POSTBRIDGE_LISTEN.", float64(l.number()))
		export.gauge("connections_limit", "Limit of open connections at POSTBRIDGE_LISTEN.", float64(l.limit))
		export.counter("connections_closed_total", "Connections closed at the limit, for new ones.", l.displaced.Load())
	}
	export.gauge("spool_limit_bytes", "Limit of the spool's files on disk.", float64(st.Spool.LimitBytes))
	if st.Spool.ID == "" {
		return // not open yet
	}
	export.gauge("spool_bytes", "Bytes used in the spool's files, without what is preallocated.", float64(st.Spool.Bytes))
	export.gauge("spool_waiting_bytes", "Bytes in the spool that are not on every bus yet.",
		float64(st.Spool.WaitingBytes))
	export.gauge("spool_disk_free_bytes", "Free space on the spool's disk, including the reserve and what the spool has preallocated.",
		float64(st.Spool.FreeBytes))
	export.gauge("spool_disk_reserve_bytes",
		"Free space to keep on the spool's disk; below it, postbacks are answered 503.", float64(st.Spool.ReserveBytes))
	export.counter("spool_last_sequence", "Sequence of the last event in the spool.", st.Spool.Last)
	for name, b := range st.Buses {
		b.Stored += b.again // a counter does not fall: an event that is stored again after a loss counts again
		for f := range numBusFates {
			export.counter("bus_events_total", "Events by their fate on the bus, since the spool was created.",
				*b.of(f), "bus", name, "fate", f.String())
		}
		export.counter("bus_committed_sequence", "Sequence up to which every event is done on the bus.",
			b.Committed, "bus", name)
		export.gauge("bus_waiting", "Events in the spool that are not done on the bus yet.",
			float64(b.Waiting), "bus", name)
		export.gauge("bus_oldest_waiting_seconds", "Age of the oldest event that is not done on the bus yet.",
			b.OldestWaitingSeconds, "bus", name)
		export.gauge("bus_up", "1 if no condition blocks publishing to the bus.", oneIf(b.Up), "bus", name)
		export.counter("bus_rewound_total",
			"Rewinds after the bus lost events; those still in the spool were published again.", b.Rewound, "bus", name)
	}
}

// exporter exports metrics. Labels are names, each followed by its value.
type exporter chan<- prometheus.Metric

func (e exporter) gauge(name, help string, v float64, labels ...string) {
	e.export(prometheus.GaugeValue, name, help, v, labels)
}

func (e exporter) counter(name, help string, v uint64, labels ...string) {
	e.export(prometheus.CounterValue, name, help, float64(v), labels)
}

func (e exporter) export(kind prometheus.ValueType, name, help string, v float64, labels []string) {
	var names, values []string
	for pair := range slices.Chunk(labels, 2) {
		names, values = append(names, pair[0]), append(values, pair[1])
	}
	e <- prometheus.MustNewConstMetric(prometheus.NewDesc("postbridge_"+name, help, names, nil), kind, v, values...)
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
