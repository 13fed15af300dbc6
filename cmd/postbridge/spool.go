package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postbridge/postbridge/bridge"
	"github.com/postbridge/postbridge/bridge/spool"
)

const spoolHelp = `Look into the spool in POSTBRIDGE_DATA_DIR. All but repair run beside serve and change nothing.

Usage: postbridge spool ls [--json]
       postbridge spool dump [filters]
       postbridge spool repair [--dry-run]

ls      the segments, how far each bus is (moments ago), and what was put aside; whether it is open
dump    the events as lines of JSON, as tail prints them and send --replay reads them; reads all of
        it, and reports damage on stderr where it stands, with what to do; exit 1 if there is any
repair  while serve is stopped: move what keeps it from opening the spool, or what nobody can read,
        to spool/aside-<time>, and say what that means; nothing is deleted. Then try to open it

` + filterHelp + `
Examples:
  postbridge spool dump >/dev/null          # only the damage
  postbridge spool dump --from 2026-11-20T09:00:00+05:30 --broker kite >day.jsonl
`

func (p *process) spool(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return misuse("spool: no ls, dump or repair; run 'postbridge spool --help'")
	}
	switch rest := args[1:]; args[0] {
	case "ls":
		return p.spoolLs(rest)
	case "dump":
		return p.spoolDump(ctx, rest)
	case "repair":
		return p.spoolRepair(rest)
	case "-h", "-help", "--help":
		return flag.ErrHelp
	default:
		return misuse("spool: %q is not ls, dump or repair; run 'postbridge spool --help'", args[0])
	}
}

// spoolFlags reads the flags of ls.
func spoolFlags(name string, args []string) (asJSON bool, err error) {
	fs := newFlags(name)
	fs.BoolVar(&asJSON, "json", false, "")
	if err := parseFlags(fs, args); err != nil {
		return false, err
	}
	return asJSON, noArguments(fs)
}

// lookAtSpool looks at the spool in the data directory.
func lookAtSpool(c *config) (*spool.View, error) {
	fs, err := spool.ReadDir(filepath.Join(c.DataDir, "spool"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no spool in %s; set POSTBRIDGE_DATA_DIR to the data of serve", c.DataDir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the spool: %w", err)
	}
	v, err := spool.Look(fs)
	if err != nil {
		return nil, fmt.Errorf("cannot read the spool: %w", err)
	}
	return v, nil
}

// listing is what ls says.
type listing struct {
	Spool    string          `json:"spool"`
	Open     bool            `json:"open"`
	Segments []listedSegment `json:"segments"`
	Cursors  []listedCursor  `json:"cursors"`
	Aside    []listedFile    `json:"aside"`
	Faults   []string        `json:"faults"`
}

type listedSegment struct {
	Name  string    `json:"name"`
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
	Bytes int64     `json:"bytes"`
	Time  time.Time `json:"time,omitzero"` // the first event in it was received
}

type listedCursor struct {
	Bus       string `json:"bus"`
	Committed uint64 `json:"committed"`
	Waiting   uint64 `json:"waiting"`
}

// listedFile is what was put aside for people to look at.
type listedFile struct {
	Name  string `json:"name"` // in the data directory
	Bytes int64  `json:"bytes"`
}

// viewSpool takes the flags of a subcommand that looks at the spool, and looks.
func (p *process) viewSpool(name string, args []string) (v *spool.View, c *config, asJSON bool, err error) {
	if asJSON, err = spoolFlags(name, args); err != nil {
		return nil, nil, false, err
	}
	if c, err = parseConfig(p.env); err != nil {
		return nil, nil, false, err
	}
	v, err = lookAtSpool(c)
	return v, c, asJSON, err
}

func (p *process) spoolLs(args []string) error {
	v, c, asJSON, err := p.viewSpool("spool ls", args)
	if err != nil {
		return err
	}
	l := listSpool(v, c.DataDir)
	if asJSON {
		text, _ := json.Marshal(l) // of text and numbers
		return p.print(string(text) + "\n")
	}
	return p.print(l.text())
}

func listSpool(v *spool.View, dataDir string) *listing {
	l := &listing{Spool: v.ID, Open: v.Open, Segments: []listedSegment{}, Cursors: []listedCursor{}, Aside: []listedFile{}, Faults: []string{}}
	for _, g := range v.Segments {
		listed := listedSegment{Name: g.Name, First: g.First, Last: g.Last, Bytes: g.Bytes}
		if r, err := v.FirstRecord(g); err == nil {
			if d, err := bridge.ParseRecord(r.Payload); err == nil {
				listed.Time = d.ReceivedAt.UTC()
			}
		}
		l.Segments = append(l.Segments, listed)
	}
	for _, c := range v.Cursors {
		l.Cursors = append(l.Cursors, listedCursor(c))
	}
	data := os.DirFS(dataDir)
	for _, pattern := range []string{"spool/*.bad", "spool/aside-*/*", "quarantine-*.jsonl"} {
		files, _ := fs.Glob(data, pattern)
		for _, name := range files {
			if info, err := fs.Stat(data, name); err == nil {
				l.Aside = append(l.Aside, listedFile{name, info.Size()})
			}
		}
	}
	for _, f := range v.Faults {
		l.Faults = append(l.Faults, fmt.Sprintf("%s: %v", f.File, f.Err))
	}
	return l
}

func (l *listing) text() string {
	var b strings.Builder
	state := "no process has it open"
	if l.Open {
		state = "a process has it open"
	}
	fmt.Fprintf(&b, "spool %s, %s\n", orElse(l.Spool, "without id"), state)
	for _, g := range l.Segments {
		events := "no event"
		if g.Last >= g.First {
			events = fmt.Sprintf("events %d to %d", g.First, g.Last)
		}
		fmt.Fprintf(&b, "%s  %10d bytes  %s", g.Name, g.Bytes, events)
		if !g.Time.IsZero() {
			fmt.Fprintf(&b, ", from %s on", g.Time.Local().Format(time.RFC3339))
		}
		b.WriteString("\n")
	}
	for _, c := range l.Cursors {
		fmt.Fprintf(&b, "%s has all up to %d; %d wait\n", c.Bus, c.Committed, c.Waiting)
	}
	for _, f := range l.Aside {
		fmt.Fprintf(&b, "put aside: %s, %d bytes\n", f.Name, f.Bytes)
	}
	for _, fault := range l.Faults {
		fmt.Fprintf(&b, "wrong: %s\n", fault)
	}
	return b.String()
}
