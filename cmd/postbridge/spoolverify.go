package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

// verification is what verify says.
type verification struct {
	Events   uint64         `json:"events"`
	Segments int            `json:"segments"`
	Bytes    int64          `json:"bytes"`
	Findings []spoolFinding `json:"findings"`
	Notes    []spoolFinding `json:"notes"`
}

// spoolFinding is something that does not check, or a note of what looks like it and is fine.
type spoolFinding struct {
	File   string `json:"file"`
	Offset int64  `json:"offset,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"`
	From   uint64 `json:"from,omitempty"` // of the events without a record
	To     uint64 `json:"to,omitempty"`
	What   string `json:"what"`
	Advice string `json:"advice,omitempty"`
}

func (f *spoolFinding) String() string {
	text := f.File + ": " + f.What
	if f.Bytes > 0 {
		text += fmt.Sprintf(" (%d bytes at offset %d)", f.Bytes, f.Offset)
	}
	if f.From > 0 {
		text += fmt.Sprintf("; events %d to %d are missing", f.From, f.To)
	}
	if f.Advice != "" {
		text += ": " + f.Advice
	}
	return text
}

func (p *process) spoolVerify(ctx context.Context, args []string) error {
	v, _, asJSON, err := p.viewSpool("spool verify", args)
	if err != nil {
		return err
	}
	found, err := verifySpool(ctx, v)
	if err != nil {
		return err
	}
	text := found.text()
	if asJSON {
		line, _ := json.Marshal(found) // of text and numbers
		text = string(line) + "\n"
	}
	if err := p.print(text); err != nil {
		return err
	}
	if n := len(found.Findings); n > 0 {
		return fmt.Errorf("spool verify: not all of it checks (%d findings)", n)
	}
	return nil
}

// verifySpool reads all there is.
func verifySpool(ctx context.Context, v *spool.View) (*verification, error) {
	found := &verification{Segments: len(v.Segments), Findings: []spoolFinding{}, Notes: []spoolFinding{}}
	segments := make(map[string]bool) // those whose file is at fault are found again by reading
	for _, g := range v.Segments {
		found.Bytes += g.Bytes
		segments[g.Name] = true
	}
	for _, f := range v.Faults {
		if !segments[f.File] || !f.Aside {
			found.Findings = append(found.Findings, spoolFinding{File: f.File, What: f.Err.Error(), Advice: adviceOf(f.File, f.Err)})
		}
	}
	for r, err := range v.Records() {
		if ctx.Err() != nil {
			return nil, errors.New("spool verify: interrupted")
		}
		if err != nil {
			found.add(err)
			continue
		}
		found.Events++
		if _, err := bridge.ParseRecord(r.Payload); err != nil {
			found.Findings = append(found.Findings, spoolFinding{
				File: fmt.Sprintf("event %d", r.Sequence), What: err.Error(), Advice: "run the version that wrote it",
			})
		}
	}
	return found, nil
}

// add takes what the reader came across.
func (found *verification) add(err error) {
	var d *spool.Damage
	if !errors.As(err, &d) {
		found.Findings = append(found.Findings, spoolFinding{File: "spool", What: err.Error()})
		return
	}
	f := spoolFinding{File: d.Segment, Offset: d.Offset, Bytes: d.Bytes, What: d.Err.Error(), Advice: adviceOf(d.Segment, d.Err)}
	if d.From <= d.To {
		f.From, f.To = d.From, d.To
	}
	switch {
	case errors.Is(err, spool.ErrWriting), errors.Is(err, spool.ErrUnfinished), errors.Is(err, spool.ErrRemoved):
		found.Notes = append(found.Notes, f)
	default:
		found.Findings = append(found.Findings, f)
	}
}

// adviceOf says what to do about a part of the spool that cannot be used.
func adviceOf(file string, err error) string {
	small := !strings.HasSuffix(file, ".seg")
	var disk *os.PathError
	switch {
	case errors.As(err, &disk):
		return "see that the user of serve may read it, and whether the disk is sound"
	case errors.Is(err, spool.ErrWriting), errors.Is(err, spool.ErrRemoved):
		return ""
	case errors.Is(err, spool.ErrUnfinished):
		return "nobody was told of it, and serve cuts it off"
	case errors.Is(err, spool.ErrGap):
		return "a loss of power leaves that, and so does a segment that was taken away; compare with the broker's order book"
	case errors.Is(err, spool.ErrNewer):
		return "" // says it
	case errors.Is(err, spool.ErrForeign), errors.Is(err, spool.ErrLostID):
		return "stop serve and move it away with 'postbridge spool repair'"
	case errors.Is(err, spool.ErrCutOff):
		return "serve cuts it off at its next start, 'postbridge spool repair' keeps a copy; compare with the broker's order book"
	case errors.Is(err, spool.ErrDamaged) && small:
		return "serve does without it at its next start: the bus is offered again all that is kept"
	case errors.Is(err, spool.ErrDamaged):
		return "serve skips it, keeps it as .bad and publishes what is behind it; compare with the broker's order book"
	default:
		return "serve mends it at its next start"
	}
}

func (found *verification) text() string {
	var b strings.Builder
	for _, f := range found.Findings {
		fmt.Fprintln(&b, f.String())
	}
	for _, f := range found.Notes {
		fmt.Fprintf(&b, "%s\n", f.String())
	}
	fmt.Fprintf(&b, "%d events in %d segments check, %d bytes\n", found.Events, found.Segments, found.Bytes)
	return b.String()
}
