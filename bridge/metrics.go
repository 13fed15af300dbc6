package bridge

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// fate is what became of a postback: received = accepted + repeated + refused + failed, once none is in flight.
type fate int

const (
	accepted fate = iota // on disk
	repeated             // the order's last state once more; on disk already
	refused              // nothing proved it, or it cannot be read
	failed               // proven, but not kept: answered 503
	numFates
)

func (f fate) String() string {
	return [...]string{"accepted", "repeated", "refused", "failed"}[f]
}

// busFate is what became of a sequence number on a bus: committed = stored + deadlettered + quarantined + skipped.
type busFate int

const (
	stored       busFate = iota // in all its destinations
	deadlettered                // in deadletters
	quarantined                 // in the quarantine file: the bus can take it nowhere
	skipped                     // no record: damaged, or removed before this bus came
	numBusFates
)

func (f busFate) String() string {
	return [...]string{"stored", "deadlettered", "quarantined", "skipped"}[f]
}

// ingestMetrics are what the receiver counts.
type ingestMetrics struct {
	brokers       map[string]*brokerMetrics // complete before the first postback
	refused       *prometheus.CounterVec
	limited       *prometheus.CounterVec
	bad           *prometheus.CounterVec
	answerSeconds prometheus.Histogram
	both          prometheus.Gatherer // these two alone, for the page
}

// brokerMetrics count the postbacks of one broker.
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
	for _, reason := range badReasons() {
		m.bad.WithLabelValues(reason) // so that 0 is exported, too
	}
	both := prometheus.NewRegistry()
	both.MustRegister(m.refused, m.answerSeconds)
	m.both = both
	return m
}

// answerTimes says how many answers took how long.
type answerTimes struct {
	Count   uint64        `json:"count"`
	Buckets []timesBucket `json:"buckets"` // the shorter ones first
}

// timesBucket counts the answers that took no longer.
type timesBucket struct {
	Seconds float64 `json:"seconds"`
	Count   uint64  `json:"count"`
}

// figures are the time to the answer, and the refusals by broker and reason.
func (m *ingestMetrics) figures() (t answerTimes, refusals map[string]map[string]uint64, err error) {
	families, err := m.both.Gather()
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

func (m *ingestMetrics) broker(name string) *brokerMetrics {
	b := new(brokerMetrics)
	m.brokers[name] = b
	m.limited.WithLabelValues(name) // 0 is to be seen, too
	return b
}

// collector exports what the bridge knows at the moment of the scrape.
type collector struct{ b *Bridge }

// desc describes a metric.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("postbridge_"+name, help, labels, nil)
}

// Describe describes nothing: what is exported depends on the state of the spool.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect exports the state now.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	st := c.b.status()

	received := desc("received_total", "Requests to a broker's routes.", "broker")
	postbacks := desc("postbacks_total", "Postbacks, by fate.", "broker", "fate")
	for name, b := range st.Postbacks {
		counter(received, b.Received, name)
		for f, n := range b.Fates() {
			counter(postbacks, n, name, f)
		}
	}

	gauge(desc("ready", "1 if the spool accepts postbacks."), oneIf(st.Ready))
	if l := c.b.ingest.Load(); l != nil {
		gauge(desc("connections", "Open connections at POSTBRIDGE_LISTEN."), float64(l.number()))
		gauge(desc("connections_limit", "Limit of open connections at POSTBRIDGE_LISTEN."), float64(l.limit))
		counter(desc("connections_closed_total", "Connections closed at the limit, for new ones."), l.displaced.Load())
	}
	gauge(desc("spool_limit_bytes", "Limit of the spool's files on disk."), float64(st.Spool.LimitBytes))
	if st.Spool.ID == "" {
		return // not open yet
	}
	gauge(desc("spool_bytes", "Size of the spool's files."), float64(st.Spool.Bytes))
	gauge(
		desc("spool_waiting_bytes", "Bytes in the spool that are not on every bus yet."),
		float64(st.Spool.WaitingBytes),
	)
	gauge(
		desc("spool_disk_free_bytes", "Free space on the spool's disk, including the reserve."),
		float64(st.Spool.FreeBytes),
	)
	gauge(
		desc(
			"spool_disk_reserve_bytes",
			"Free space to keep on the spool's disk; below it, postbacks are answered 503.",
		),
		float64(st.Spool.ReserveBytes),
	)
	counter(desc("spool_last_sequence", "Sequence of the last event in the spool."), st.Spool.Last)

	fates := desc("bus_events_total", "Events by their fate on the bus, since the spool was created.", "bus", "fate")
	committed := desc("bus_committed_sequence", "Sequence up to which every event is done on the bus.", "bus")
	waiting := desc("bus_waiting", "Events in the spool that are not done on the bus yet.", "bus")
	oldest := desc("bus_oldest_waiting_seconds", "Age of the oldest event that is not done on the bus yet.", "bus")
	up := desc("bus_up", "1 if no condition blocks publishing to the bus.", "bus")
	rewound := desc(
		"bus_rewound_total",
		"Rewinds after the bus lost events; those still in the spool were published again.",
		"bus",
	)
	for name, b := range st.Buses {
		for f, n := range b.Fates() {
			counter(fates, n, name, f)
		}
		counter(committed, b.Committed, name)
		gauge(waiting, float64(b.Waiting), name)
		gauge(oldest, b.OldestWaitingSeconds, name)
		gauge(up, oneIf(b.Up), name)
		counter(rewound, b.Rewound, name)
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
