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
	// pollInterval is the time between two reads of the secret files.
	pollInterval = 2 * time.Second
	// rereadAfter limits how often postbacks with a wrong proof cause a read.
	rereadAfter = 100 * time.Millisecond
	// recentChange is how long reload reports a change: longer than a caller takes from loading a secret to reload.
	recentChange = 2 * time.Second
	// maxSecretFile limits the size of a secret file, in bytes.
	maxSecretFile = 1 << 20
)

// secretFiles reloads the files that hold secrets. A change is detected by content, not by name or time: a mounted
// Kubernetes Secret changes by swapping a symbolic link on its path. While a file is invalid, its last valid content
// stays in effect.
type secretFiles struct {
	log *slog.Logger
	ok  *prometheus.GaugeVec

	mu sync.Mutex
	// Guarded by mu, and so are the files.
	all       []*secretFile
	readAt    time.Time // last read of all files
	changedAt time.Time // last change of a secret
}

// secretFile is one file, or two that are concatenated: a certificate and its key.
type secretFile struct {
	name  string
	paths []string
	store func(text string) error

	infos   []os.FileInfo     // at the last read; nil for a missing file
	sum     [sha256.Size]byte // of the content in effect
	problem string            // why the last content is not in effect
}

func newSecretFiles() *secretFiles {
	return &secretFiles{
		log: slog.New(slog.DiscardHandler),
		ok: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postbridge_secret_file_ok",
			Help: "1 if the secrets in the file are in effect, 0 if the file is empty, unreadable or invalid.",
		}, []string{"name"}),
	}
}

// add reads a file for the first time; it must be valid. Empty paths are ignored.
func (s *secretFiles) add(name string, store func(text string) error, paths ...string) error {
	f := &secretFile{name: name, store: store}
	f.paths = slices.DeleteFunc(paths, func(path string) bool { return path == "" })
	f.infos = make([]os.FileInfo, len(f.paths))
	if _, err := f.read(); err != nil {
		return err
	}
	s.ok.WithLabelValues(f.name).Set(1)
	s.all = append(s.all, f)
	return nil
}

// start exports the state of the files and reloads them until ctx ends.
func (s *secretFiles) start(ctx context.Context, log *slog.Logger, registry *prometheus.Registry) {
	if len(s.all) == 0 {
		return
	}
	s.log = log
	registry.MustRegister(s.ok)
	go s.poll(ctx)
}

// poll reads the files at intervals until ctx ends.
func (s *secretFiles) poll(ctx context.Context) {
	for pause(ctx, pollInterval) {
		s.mu.Lock()
		s.refreshAll(true)
		s.mu.Unlock()
	}
}

// reload reads all files, or within rereadAfter of the last read only the touched ones. It reports whether a secret has
// changed within recentChange, so that a caller also learns of a change that another call or the poll found after the
// caller had loaded the old secret.
func (s *secretFiles) reload() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refreshAll(time.Since(s.readAt) >= rereadAfter)
	return time.Since(s.changedAt) < recentChange
}

// refreshAll reads all files, or only the touched ones.
func (s *secretFiles) refreshAll(untouched bool) {
	for _, f := range s.all {
		if untouched || f.touched() {
			s.refresh(f)
		}
	}
	if untouched {
		s.readAt = time.Now()
	}
}

// refresh reads one file and logs if its state changed.
func (s *secretFiles) refresh(f *secretFile) {
	changed, err := f.read()
	problem, ok := "", 1.0
	if err != nil {
		problem, ok = err.Error(), 0
	}
	switch {
	case changed:
		s.changedAt = time.Now()
		s.log.Info("secrets reloaded", "name", f.name, "path", f.path())
	case problem != "" && problem != f.problem:
		s.log.Warn("cannot load the secret file; its last valid content stays in effect",
			"name", f.name, "path", f.path(), "error", problem)
	case problem == "" && f.problem != "":
		s.log.Info("the secret file is valid again", "name", f.name, "path", f.path())
	}
	f.problem = problem
	s.ok.WithLabelValues(f.name).Set(ok)
}

func (f *secretFile) path() string { return strings.Join(f.paths, ", ") }

// read stores the content if it is valid and has changed. No error shows the content.
func (f *secretFile) read() (changed bool, err error) {
	var text []byte
	for i, path := range f.paths {
		part, info, err := readSecretFile(path)
		f.infos[i] = info
		if err != nil {
			return false, fmt.Errorf("%w; name a file that stays readable", err)
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
	if err := f.store(string(text)); err != nil {
		return false, err
	}
	f.sum = sum
	return true, nil
}

// touched reports whether a path has another file, time or size than at the last read.
func (f *secretFile) touched() bool {
	for i, path := range f.paths {
		info, err := os.Stat(path)
		before := f.infos[i]
		if missing := before == nil; missing != (err != nil) {
			return true
		} else if missing {
			continue
		}
		if !os.SameFile(info, before) || !info.ModTime().Equal(before.ModTime()) || info.Size() != before.Size() {
			return true
		}
	}
	return false
}

// readSecretFile reads a regular file of at most maxSecretFile bytes; reading a pipe could block forever.
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
