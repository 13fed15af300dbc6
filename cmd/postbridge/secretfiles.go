package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// pollInterval is how often secret files are read.
	pollInterval = 2 * time.Second
	// rereadAfter bounds how often those who send wrong proofs can make us read.
	rereadAfter = 100 * time.Millisecond
	// recentChange is how long a change is news: longer than it can take from looking at a secret to asking for news.
	recentChange = 2 * time.Second
	// maxSecretFile is the largest file taken for one of secrets.
	maxSecretFile = 1 << 20
)

// secretFiles are the files that hold secrets. They are told apart by what is in them, not by their name or time: a
// mounted Kubernetes Secret changes by swapping a link on the way to it. A file that cannot be used leaves the last
// good secrets in force.
type secretFiles struct {
	log *slog.Logger
	ok  *prometheus.GaugeVec

	mu     sync.Mutex
	all    []*secretFile
	readAt time.Time // of all files

	// changedAt is when something new came into force.
	changedAt time.Time
}

// secretFile is one of them, or two that are taken as one text: a certificate and its key. Guarded by the mutex of all.
type secretFile struct {
	name   string
	paths  []string
	accept func(text string) error

	infos   []os.FileInfo     // at the last reading, nil for one that was not there
	sum     [sha256.Size]byte // of the content that is in force
	problem string            // why the content now is not in force
}

func newSecretFiles() *secretFiles {
	return &secretFiles{
		log: slog.New(slog.DiscardHandler),
		ok: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postbridge_secret_file_ok",
			Help: "Whether the secrets in force are those in the file: 0 if it is empty, unreadable or wrong.",
		}, []string{"name"}),
	}
}

// add reads a file for the first time, when it has to be good. Paths that are empty do not count.
func (s *secretFiles) add(name string, accept func(text string) error, paths ...string) error {
	f := &secretFile{name: name, accept: accept}
	f.paths = slices.DeleteFunc(paths, func(path string) bool { return path == "" })
	f.infos = make([]os.FileInfo, len(f.paths))
	if _, err := f.read(); err != nil {
		return err
	}
	s.ok.WithLabelValues(f.name).Set(1)
	s.all = append(s.all, f)
	return nil
}

// start tells log and registry how the files are, and watches them until ctx ends.
func (s *secretFiles) start(ctx context.Context, log *slog.Logger, registry *prometheus.Registry) {
	if len(s.all) == 0 {
		return
	}
	s.log = log
	registry.MustRegister(s.ok)
	go s.watch(ctx)
}

// watch reads the files again and again until ctx ends.
func (s *secretFiles) watch(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.mu.Lock()
			s.readAll()
			s.mu.Unlock()
		}
	}
}

// reload reads the files now, unless that was done a moment ago and none was touched since, and reports whether new
// secrets came into force lately: also those that somebody else's call, or the clock, found between the caller's look
// at the old ones and this.
func (s *secretFiles) reload() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.readAt) >= rereadAfter {
		s.readAll()
	} else {
		s.readTouched()
	}
	return time.Since(s.changedAt) < recentChange
}

func (s *secretFiles) readAll() {
	for _, f := range s.all {
		s.refresh(f)
	}
	s.readAt = time.Now()
}

func (s *secretFiles) readTouched() {
	for _, f := range s.all {
		if f.touched() {
			s.refresh(f)
		}
	}
}

// refresh reads one file and says so if its state changed, once.
func (s *secretFiles) refresh(f *secretFile) {
	changed, err := f.read()
	problem, ok := "", 1.0
	if err != nil {
		problem, ok = err.Error(), 0
	}
	switch {
	case changed:
		s.changedAt = time.Now()
		s.log.Info("new secrets are in force", "name", f.name, "path", f.path())
	case problem != "" && problem != f.problem:
		s.log.Warn("a file of secrets cannot be used; the last good ones stay in force", "name", f.name, "path", f.path(), "error", problem)
	case problem == "" && f.problem != "":
		s.log.Info("a file of secrets is good again", "name", f.name, "path", f.path())
	}
	f.problem = problem
	s.ok.WithLabelValues(f.name).Set(ok)
}

func (f *secretFile) path() string { return strings.Join(f.paths, ", ") }

// read puts the content in force if it is good and not what is in force already. No error shows what is in the file.
func (f *secretFile) read() (changed bool, err error) {
	var text []byte
	for i, path := range f.paths {
		part, info, err := readSecretFile(path)
		f.infos[i] = info
		if err != nil {
			return false, fmt.Errorf("%w; name a file that can be read again and again", err)
		}
		if i > 0 {
			text = append(text, '\n')
		}
		text = append(text, part...)
	}
	sum := sha256.Sum256(text)
	if sum == f.sum {
		return false, nil
	}
	if err := f.accept(string(text)); err != nil {
		return false, err
	}
	f.sum = sum
	return true, nil
}

// touched reports whether another file is there now, or its time or size is another.
func (f *secretFile) touched() bool {
	for i, path := range f.paths {
		if touched(path, f.infos[i]) {
			return true
		}
	}
	return false
}

func touched(path string, before os.FileInfo) bool {
	info, err := os.Stat(path)
	if err != nil || before == nil {
		return (err == nil) != (before != nil)
	}
	return !os.SameFile(info, before) || !info.ModTime().Equal(before.ModTime()) || info.Size() != before.Size()
}

// readSecretFile reads a regular file of a sensible size; reading a pipe could wait for ever.
func readSecretFile(path string) ([]byte, os.FileInfo, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, nil, err
	} else if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a regular file")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxSecretFile+1))
	if len(text) > maxSecretFile {
		err = errors.New("it is larger than 1MiB")
	}
	return text, info, err
}
