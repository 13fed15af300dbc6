package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/postbridge/postbridge/bridge/spool"
)

// spoolRepair makes a spool one that serve opens.
func (p *process) spoolRepair(args []string) error {
	dryRun := false
	flags := newFlags("spool repair")
	flags.BoolVar(&dryRun, "dry-run", false, "")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if err := noArguments(flags); err != nil {
		return err
	}
	c, err := parseConfig(p.env)
	if err == nil {
		err = firstError(c.checkBuses, c.checkSpool)
	}
	if err != nil {
		return err
	}
	if err := checkOwner(filepath.Join(c.DataDir, "spool")); err != nil {
		return err
	}
	seen, err := lookAtSpool(c)
	switch {
	case err != nil:
		return err
	case seen.Open:
		return errSpoolOpen
	case dryRun:
		r, err := newRepair(c, seen)
		if err != nil {
			return err
		}
		return p.print(r.text("would move"))
	}
	return p.repair(c)
}

// checkOwner refuses root where the spool is another user's, who could not open what root makes there.
func checkOwner(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return nil // who looks at the spool says it
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && os.Geteuid() == 0 {
		return fmt.Errorf("spool repair: the spool is of user %d, and serve could not open what root makes there; run it as that user", st.Uid)
	}
	return nil
}

var errSpoolOpen = errors.New("spool repair: a process has the spool open; stop serve first")

func (p *process) repair(c *config) error {
	fs, err := spool.OSDir(filepath.Join(c.DataDir, "spool"))
	if err != nil {
		return err
	}
	v, lock, err := spool.Hold(fs)
	if errors.Is(err, spool.ErrLocked) {
		return errSpoolOpen
	}
	if err != nil {
		return fmt.Errorf("spool repair: %w", err)
	}
	r, err := newRepair(c, v)
	if err == nil {
		err = r.move()
	}
	if err = errors.Join(err, lock.Close()); err != nil {
		return fmt.Errorf("spool repair: %w", err)
	}
	if err := p.print(r.text("moved")); err != nil {
		return err
	}
	s, err := spool.Open(fs, spool.Options{
		MaxBytes: int64(c.SpoolMaxBytes), MinFree: int64(c.SpoolMinFreeBytes), Cursors: c.Publish,
		Keep: math.MaxInt64, // so that nothing is removed
		Log:  slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return fmt.Errorf("spool repair: %w", err)
	}
	last := s.Stats().Last
	if err := s.Close(); err != nil {
		return fmt.Errorf("spool repair: %w", err)
	}
	return p.print(fmt.Sprintf("the spool opens; its last number is %d. Start serve\n", last))
}

// repair is what is to be moved, and what that means.
type repair struct {
	view       *spool.View
	dir, aside string
	moves      []asideMove
	goOnFrom   uint64 // 0 if no number has to be left out
}

// asideMove is one file.
type asideMove struct {
	name, why, means string
	from, bytes      int64 // the part of it that is copied, as it will be cut off; 0 bytes for a file that is moved
}

func newRepair(c *config, v *spool.View) (*repair, error) {
	dir := filepath.Join(c.DataDir, "spool")
	r := &repair{view: v, dir: dir, aside: filepath.Join(dir, "aside-"+time.Now().UTC().Format("20060102T150405Z")), goOnFrom: v.NumbersAside()}
	for _, f := range v.Faults {
		if errors.Is(f.Err, os.ErrPermission) {
			return nil, fmt.Errorf("%s cannot be read by this user; run it as the user of serve, or mend the file's owner and rights", f.File)
		}
		if f.Aside {
			why := f.Err.Error()
			if errors.Is(f.Err, spool.ErrNewer) {
				why = "a newer version of postbridge wrote it" // the error says to do what is done here
			}
			r.moves = append(r.moves, asideMove{name: f.File, why: why, means: meaningOf(f.File, f.Err, v)})
		}
	}
	leftovers, err := v.Leftovers()
	if err != nil {
		return nil, err
	}
	for _, name := range leftovers {
		r.moves = append(r.moves, asideMove{name: name, why: "a crash kept it from replacing another", means: "the older one holds"})
	}
	if segment, offset, bytes := v.TornEnd(); bytes > 0 && r.goOnFrom == 0 {
		r.moves = append(r.moves, asideMove{
			name: segment, from: offset, bytes: bytes, why: "the bytes at its end do not check", means: "they are copied, and cut off as any start does",
		})
	}
	return r, nil
}

// meaningOf says what it means that a file is not there any more.
func meaningOf(file string, err error, v *spool.View) string {
	segment := strings.HasSuffix(file, ".seg")
	switch {
	case segment && errors.Is(err, spool.ErrNewer):
		return "the events in it are not published; to publish them, put it into spool/ of a data directory of its own, for 'postbridge drain' of the version that wrote it"
	case segment && errors.Is(err, spool.ErrForeign):
		return "the events in it are another spool's; put it into spool/ of a data directory of its own, for 'postbridge drain'"
	case segment:
		return "nobody can read the events in it; compare with the broker's order book"
	case file == "spool" && v.ID != "":
		return "the segments say the id"
	case file == "spool":
		return "a new spool begins"
	case strings.HasPrefix(file, "cursor-"):
		return "the bus is offered again all that is kept"
	default:
		return "the bus is asked what it has of all that is kept"
	}
}

func (r *repair) text(verb string) string {
	var b strings.Builder
	if len(r.moves) == 0 {
		b.WriteString("nothing is to be moved\n")
	}
	for _, m := range r.moves {
		if m.bytes > 0 {
			fmt.Fprintf(&b, "%s the last %d bytes of %s to %s: %s; %s\n", verb, m.bytes, m.name, r.aside, m.why, m.means)
			continue
		}
		fmt.Fprintf(&b, "%s %s to %s: %s; %s\n", verb, m.name, r.aside, m.why, m.means)
	}
	if r.goOnFrom > 0 {
		fmt.Fprintf(&b, "the next event is number %d, so that no bus takes it for one that was moved; those between are said to be skipped\n", r.goOnFrom)
	}
	return b.String()
}

// move does it. The numbers that are left out are safe before the segments go that say them, and what is moved is safe in its
// new place before the spool goes on without it.
func (r *repair) move() error {
	if r.goOnFrom > 0 {
		if err := r.view.GoOnFrom(r.goOnFrom); err != nil {
			return err
		}
	}
	if len(r.moves) > 0 {
		if err := os.Mkdir(r.aside, 0o700); err != nil {
			return err
		}
	}
	for _, m := range r.moves {
		var err error
		if m.bytes > 0 {
			err = copyPart(filepath.Join(r.dir, m.name), filepath.Join(r.aside, fmt.Sprintf("%s-%d", m.name, m.from)), m.from, m.bytes)
		} else {
			err = os.Rename(filepath.Join(r.dir, m.name), filepath.Join(r.aside, m.name))
		}
		if err != nil {
			return err
		}
	}
	if len(r.moves) == 0 {
		return nil
	}
	return errors.Join(spool.SyncDir(r.aside), spool.SyncDir(r.dir))
}

// copyPart copies bytes of a file into a new one.
func copyPart(from, to string, offset, bytes int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, io.NewSectionReader(in, offset, bytes)); err != nil {
		return err
	}
	return out.Sync()
}
