package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/publishers"
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

const doctorHelp = `Check what the buses, the disk, the clock, the routes and the files of secrets really promise: one
line for each result, with its severity and, unless it is ok, what to do. It reads the configuration
of serve from the environment, may run beside it, ends within seconds, and changes nothing.

Usage: postbridge doctor [flags]

  --json     one object: "grade", the worst severity, and "findings", each with "area", "what",
             "grade" (ok, info, warn or fail), "text" and "do"
  --probe    also publish a probe on each bus, as serve publishes a dead letter, and wait until it
             is stored. It never goes where orders go: its subject is deadletters.doctor, its key
             on Kafka doctor.<id>, and its type postbridge.probe.v1

The fsync is measured with a file in POSTBRIDGE_DATA_DIR, which is removed again. Beside serve,
run it as the same user. serve itself checks the same every ten minutes, but for the fsync, the
clock and the probe, and exports postbridge_doctor_grade: 0 ok, 1 warn, 2 fail.

Exit code: 0 if all is ok, 3 with a warning, 1 with a failure, 2 for a bad configuration.

Example:
  POSTBRIDGE_DHAN_TOKENS=dev-dhan-token postbridge doctor
`

// doctorOptions are the flags of doctor.
type doctorOptions struct{ json, probe bool }

func doctorFlags(o *doctorOptions) *flag.FlagSet {
	fs := newFlags("doctor")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.probe, "probe", false, "")
	return fs
}

// severityError is the worst severity, which was reported already, as a failure of the program.
type severityError struct{ severity publishers.Severity }

func (e *severityError) Error() string { return "the worst result is " + e.severity.String() }

func (p *process) doctor(ctx context.Context, args []string) error {
	o := new(doctorOptions)
	fs := doctorFlags(o)
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := noArguments(fs); err != nil {
		return err
	}
	c, credentials, err := readConfig(p.env)
	if err != nil {
		return err
	}
	d := &doctor{c, credentials}
	results := slices.Concat(d.check(ctx, true), clock())
	if o.probe {
		results = append(results, d.probe(ctx)...)
	}
	if ctx.Err() != nil {
		return errors.New("doctor: interrupted") // a bus that was left is no result
	}
	text := textReport(results)
	if o.json {
		text = jsonReport(results)
	}
	if err := p.print(text); err != nil {
		return err
	}
	if worst := publishers.Worst(results); worst >= publishers.Warn {
		return &severityError{worst}
	}
	return nil
}

// doctor checks what postbridge depends on.
type doctor struct {
	config      *config
	credentials *credentials
}

// busTimeout bounds the checks of the buses as a whole, whatever a bus does.
const busTimeout = 30 * time.Second

// check runs all checks but those that the command alone does: the buses at the same time, since a bus that is down
// takes seconds. serve does not measure fsyncs: the disk is busy with the spool.
func (d *doctor) check(ctx context.Context, measure bool) []publishers.CheckResult {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	maxEvent := bridge.MaxEventSize(int64(d.config.MaxBody))
	var ofNATS, ofKafka []publishers.CheckResult
	var buses sync.WaitGroup
	if d.config.publishes("nats") {
		n := d.config.natsConfig(d.credentials)
		n.URL = d.config.natsAddress()
		buses.Go(func() { ofNATS = nats.Check(ctx, n, maxEvent) })
	}
	if d.config.publishes("kafka") {
		k := d.config.kafkaConfig(d.credentials)
		buses.Go(func() { ofKafka = kafka.Check(ctx, k, maxEvent) })
	}
	buses.Wait()
	return slices.Concat(ofNATS, ofKafka, d.disk(measure), d.routes(), d.secrets(), d.config.checkSettings())
}

// clock asks the kernel whether its clock is synchronized. serve does not: a hardened unit may have a process killed
// that touches the clock.
func clock() []publishers.CheckResult {
	c := publishers.Checks{Area: "clock", What: "this machine's clock"}
	switch unsynchronized, err := clockUnsynchronized(); {
	case errors.Is(err, errors.ErrUnsupported):
	case err != nil:
		c.Info("cannot be checked (adjtimex: "+err.Error()+")", "check it on the machine itself: timedatectl")
	case unsynchronized:
		c.Warn("is not synchronized (adjtimex reports STA_UNSYNC): times of events drift",
			"run chrony or systemd-timesyncd on the machine")
	default:
		c.OK("is synchronized")
	}
	return c.Results
}

// textReport is the results for people.
func textReport(results []publishers.CheckResult) string {
	var b strings.Builder
	count := make(map[publishers.Severity]int)
	for _, r := range results {
		count[r.Severity]++
		fmt.Fprintf(&b, "%-4s %-7s %s\n", r.Severity, r.Area, r)
	}
	fmt.Fprintf(&b, "the worst is %s: %d ok, %d info, %d warn, %d fail\n", publishers.Worst(results),
		count[publishers.OK], count[publishers.Info], count[publishers.Warn], count[publishers.Fail])
	return b.String()
}

// jsonReport is the results for programs.
func jsonReport(results []publishers.CheckResult) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(struct { // of text only
		Grade    publishers.Severity      `json:"grade"`
		Findings []publishers.CheckResult `json:"findings"`
	}{publishers.Worst(results), results})
	return b.String()
}

const (
	// firstCheck is when serve checks first, once its buses had the time to come up.
	firstCheck = 5 * time.Second
	// The next checks come after these, sooner while one fails, so that a repair shows soon.
	checkInterval   = 10 * time.Minute
	failureInterval = time.Minute
)

// watch exports the worst severity of each area until ctx ends.
func (d *doctor) watch(ctx context.Context, registry *prometheus.Registry) {
	grades := newGrades()
	registry.MustRegister(grades)
	for wait := firstCheck; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		results := d.check(ctx, false)
		if ctx.Err() != nil {
			return // a bus that was left is no result
		}
		export(grades, results)
		wait = checkInterval
		if publishers.Worst(results) == publishers.Fail {
			wait = failureInterval
		}
	}
}

func newGrades() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "postbridge_doctor_grade",
		Help: "The worst that 'postbridge doctor' finds: 0 ok, 1 warn, 2 fail.",
	}, []string{"area"})
}

// export sets the metric. The areas are the same each time.
func export(grades *prometheus.GaugeVec, results []publishers.CheckResult) {
	worst := make(map[string]publishers.Severity)
	for _, r := range results {
		worst[r.Area] = max(worst[r.Area], r.Severity)
	}
	for area, severity := range worst {
		grades.WithLabelValues(area).Set(max(0, float64(severity-publishers.Info)))
	}
}
