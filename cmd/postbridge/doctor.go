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
	"github.com/postbridge/postbridge/publishers/kafka"
	"github.com/postbridge/postbridge/publishers/nats"
)

const doctorHelp = `Grade what the buses, the disk, the clock, the routes and the files of secrets really promise: one
line for each thing that was looked at, and, unless it is ok, what to do. It reads the configuration
of serve from the environment, may run beside it, ends within seconds, and changes nothing.

Usage: postbridge doctor [flags]

  --json     one object: "grade", the worst there is, and "findings", each with "area", "what",
             "grade" (ok, info, warn or fail), "text" and "do"
  --probe    also publish a probe on each bus, as a dead letter, and read it back. It never goes
             where orders go: its subject is deadletters.doctor, its key on Kafka doctor.<id>, and
             its type postbridge.probe.v1

The fsync is measured with a file in POSTBRIDGE_DATA_DIR, which is removed again. Beside serve,
run it as the same user. serve itself does the same every ten minutes, but for the fsync, the
kernel's word on its clock and the probe, and exports postbridge_doctor_grade: 0 ok, 1 warn, 2 fail.

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

// gradeError is a grade that was told already, as a failure of the program.
type gradeError struct{ grade bridge.Grade }

func (e *gradeError) Error() string { return "the worst finding is " + e.grade.String() }

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
	findings := d.examine(ctx, examination{local: true, probe: o.probe})
	if ctx.Err() != nil {
		return errors.New("doctor: interrupted") // a bus that was left is no finding
	}
	text := textReport(findings)
	if o.json {
		text = jsonReport(findings)
	}
	if err := p.print(text); err != nil {
		return err
	}
	if grade := worst(findings); grade >= bridge.Warn {
		return &gradeError{grade}
	}
	return nil
}

// doctor grades what postbridge depends on.
type doctor struct {
	config      *config
	credentials *credentials
}

// examination is what is done beyond looking.
type examination struct {
	// local says to measure fsyncs and to ask the kernel for its clock. serve does neither: the disk is busy with the
	// spool, and whoever hardens the unit may have a process killed that touches the clock.
	local bool
	probe bool
}

// examineTimeout bounds an examination, whatever a bus does.
const examineTimeout = 30 * time.Second

// examine looks at everything; at the buses at the same time, since one that is down takes seconds.
func (d *doctor) examine(ctx context.Context, e examination) []bridge.Finding {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	o := bridge.Examination{MaxEvent: bridge.MaxEventSize(int64(d.config.MaxBody)), Probe: e.probe}
	var natsSays, kafkaSays []bridge.Finding
	var buses sync.WaitGroup
	if d.config.publishes("nats") {
		n := d.config.natsConfig(d.credentials)
		n.URL = d.config.natsAddress()
		buses.Go(func() { natsSays = nats.Examine(ctx, n, o) })
	}
	if d.config.publishes("kafka") {
		k := d.config.kafkaConfig(d.credentials)
		buses.Go(func() { kafkaSays = kafka.Examine(ctx, k, o) })
	}
	buses.Wait()
	all := slices.Concat(natsSays, kafkaSays, d.disk(e.local), d.routes(), d.secrets(), d.config.cautions())
	if e.local {
		all = append(all, d.clock()...)
	}
	slices.SortStableFunc(all, func(a, b bridge.Finding) int {
		return slices.Index(areas(), a.Area) - slices.Index(areas(), b.Area)
	})
	return all
}

// areas are those of findings, in the order in which they are shown.
func areas() []string { return []string{"nats", "kafka", "disk", "clock", "routes", "secrets"} }

// clock asks the kernel whether somebody keeps its clock right; a NATS server tells its own time, too.
func (d *doctor) clock() []bridge.Finding {
	f := &bridge.Findings{Area: "clock"}
	const what = "this machine's clock"
	unsynchronized, err := clockUnsynchronized()
	switch {
	case errors.Is(err, errors.ErrUnsupported):
	case err != nil:
		f.Add(bridge.Info, what, "may not be asked whether it is kept right (adjtimex: "+err.Error()+")", "look on the machine itself: timedatectl")
	case unsynchronized:
		f.Add(bridge.Warn, what, "is kept right by nobody, as the kernel says (adjtimex): times of events drift", "run chrony or systemd-timesyncd on the machine")
	default:
		f.OK(what, "is kept right, as the kernel says (adjtimex)")
	}
	return f.All
}

func worst(findings []bridge.Finding) (grade bridge.Grade) {
	for _, f := range findings {
		grade = max(grade, f.Grade)
	}
	return grade
}

// textReport is the findings for people. What is ok of one thing is one line.
func textReport(findings []bridge.Finding) string {
	var b strings.Builder
	count := make(map[bridge.Grade]int)
	for i := 0; i < len(findings); i++ {
		f := findings[i]
		count[f.Grade]++
		fmt.Fprintf(&b, "%-4s %-7s %s", f.Grade, f.Area, f)
		for ; i+1 < len(findings) && goesOn(f, findings[i+1]); i++ {
			count[f.Grade]++
			b.WriteString(", " + findings[i+1].Text)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "the worst is %s: %d ok, %d info, %d warn, %d fail\n",
		worst(findings), count[bridge.OK], count[bridge.Info], count[bridge.Warn], count[bridge.Fail])
	return b.String()
}

// goesOn reports whether the next finding is ok of the same thing, too.
func goesOn(f, next bridge.Finding) bool {
	return f.Grade == bridge.OK && next.Grade == bridge.OK && next.Area == f.Area && next.What == f.What
}

// jsonReport is the findings for programs.
func jsonReport(findings []bridge.Finding) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(struct { // of text only
		Grade    bridge.Grade     `json:"grade"`
		Findings []bridge.Finding `json:"findings"`
	}{worst(findings), findings})
	return b.String()
}

const (
	// firstExamination is when serve has itself examined first: once its buses had the time to come up.
	firstExamination = 5 * time.Second
	// The next come after these, sooner while something fails: that is to be seen mended.
	examinationInterval = 10 * time.Minute
	failureInterval     = time.Minute
)

// watch exports the worst grade of each area until ctx ends.
func (d *doctor) watch(ctx context.Context, registry *prometheus.Registry) {
	grades := newGrades()
	registry.MustRegister(grades)
	timer := time.NewTimer(firstExamination)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		findings := d.examine(ctx, examination{})
		if ctx.Err() != nil {
			return // a bus that was left is no finding
		}
		export(grades, findings)
		next := examinationInterval
		if worst(findings) == bridge.Fail {
			next = failureInterval
		}
		timer.Reset(next)
	}
}

func newGrades() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "postbridge_doctor_grade",
		Help: "The worst that 'postbridge doctor' finds: 0 ok, 1 warn, 2 fail.",
	}, []string{"area"})
}

// export sets the metric. An area without findings has none.
func export(grades *prometheus.GaugeVec, findings []bridge.Finding) {
	value := map[bridge.Grade]float64{bridge.Warn: 1, bridge.Fail: 2}
	for _, area := range areas() {
		of := slices.DeleteFunc(slices.Clone(findings), func(f bridge.Finding) bool { return f.Area != area })
		if len(of) == 0 {
			grades.DeleteLabelValues(area)
			continue
		}
		grades.WithLabelValues(area).Set(value[worst(of)])
	}
}
