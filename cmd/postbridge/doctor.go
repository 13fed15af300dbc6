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

const doctorHelp = `Check what delivery depends on: the buses, the disk, the clock, the routes, the files of secrets and
the access tokens of reconcile. Each result is one line: its severity, its area and, unless it is
ok, the remedy. doctor reads the configuration of serve from the environment, may run beside it,
ends within seconds, and changes nothing.

Usage: postbridge doctor [flags]

  --json     one object: "grade", the worst severity, and "findings", each with "area", "what",
             "grade" (ok, info, warn or fail), "text" and "do"
  --probe    also publish a dead letter to each bus, as serve does, and wait until it is stored. Its
             subject is deadletters.doctor, its key on Kafka doctor.<id>, and its type
             postbridge.probe.v1

The fsync is measured with a file in POSTBRIDGE_DATA_DIR, which is removed again. Beside serve,
run it as the same user. serve repeats all checks but those of the fsync, the clock and the access
tokens every ten minutes, and exports postbridge_doctor_grade: 0 ok, 1 warn, 2 fail.

Exit code: 0 if all is ok, 3 with a warning, 1 with a failure, 2 for a bad configuration.

Example:
  POSTBRIDGE_DHAN_TOKENS=dev-dhan-token postbridge doctor
`

// doctorOptions holds the flags of doctor.
type doctorOptions struct{ json, probe bool }

func doctorFlags(o *doctorOptions) *flag.FlagSet {
	fs := newFlags("doctor")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.probe, "probe", false, "")
	return fs
}

// severityError ends the command with the exit code of the worst severity, after the report was printed.
type severityError struct{ severity publishers.Severity }

func (e *severityError) Error() string { return "the worst result is " + e.severity.String() }

func (p *process) doctor(ctx context.Context, args []string) error {
	o := new(doctorOptions)
	if err := parseOnlyFlags(doctorFlags(o), args); err != nil {
		return err
	}
	c, credentials, err := readDoctorConfig(p.env)
	if err != nil {
		return err
	}
	d := &doctor{c, credentials}
	results := slices.Concat(d.check(ctx), d.fsync(), clock(), d.accessTokens())
	if o.probe {
		results = append(results, d.probe(ctx)...)
	}
	if ctx.Err() != nil {
		return errors.New("doctor: interrupted") // an interrupted check of a bus has no meaning
	}
	report := textReport
	if o.json {
		report = jsonReport
	}
	if err := p.print(report(results)); err != nil {
		return err
	}
	if worst := publishers.Worst(results); worst >= publishers.Warn {
		return &severityError{worst}
	}
	return nil
}

// doctor checks everything that delivery depends on.
type doctor struct {
	config      *config
	credentials *credentials
}

// busTimeout bounds the checks of all buses together.
const busTimeout = 30 * time.Second

// check runs the checks that serve repeats: all but the fsync, because the disk is busy with the spool, the clock, and
// the access tokens. The buses are checked concurrently, since one that is down takes seconds.
func (d *doctor) check(ctx context.Context) []publishers.CheckResult {
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
	return slices.Concat(ofNATS, ofKafka, d.disk(), d.routes(), d.secrets(), d.config.checkSettings(d.credentials))
}

// clock checks that the kernel's clock is synchronized. serve does not: a hardened unit may kill a process that calls
// adjtimex.
func clock() []publishers.CheckResult {
	c := &publishers.Checks{Area: "clock", What: "this machine's clock"}
	unsynchronized, err := clockUnsynchronized()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	c.Info(err != nil, fmt.Sprintf("cannot be checked (adjtimex: %v)", err),
		"check it on the machine itself: timedatectl")
	c.Warn(unsynchronized, "is not synchronized (adjtimex reports STA_UNSYNC): times of events drift",
		"run chrony or systemd-timesyncd on the machine")
	if err == nil {
		c.OK("is synchronized")
	}
	return c.Results
}

// textReport formats the results as lines, and counts them in the last one.
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

// jsonReport formats the results as a JSON object.
func jsonReport(results []publishers.CheckResult) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(struct { // strings always encode
		Grade    publishers.Severity      `json:"grade"`
		Findings []publishers.CheckResult `json:"findings"`
	}{publishers.Worst(results), results})
	return b.String()
}

const (
	// firstCheck is the time that serve gives its buses to connect before the first check.
	firstCheck = 5 * time.Second
	// checkInterval is the time between checks, and failureInterval while one fails, so that a repair shows soon.
	checkInterval   = 10 * time.Minute
	failureInterval = time.Minute
)

// watch repeats the checks and exports the worst severity of each area, until ctx ends.
func (d *doctor) watch(ctx context.Context, registry *prometheus.Registry) {
	grades := newGrades()
	registry.MustRegister(grades)
	for wait := firstCheck; pause(ctx, wait); {
		results := d.check(ctx)
		if ctx.Err() != nil {
			return // an interrupted check of a bus has no meaning
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
