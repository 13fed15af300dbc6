package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
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
	// readPause is the least time between two reads: anybody can post without a valid secret, and a read of a few files
	// costs more than the rest of such a request.
	readPause = 20 * time.Millisecond
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
	readAt    time.Time // when the last read began
	changedAt time.Time // last change of a secret
}

// secretFile is one file, or two that are concatenated: a certificate and its key.
type secretFile struct {
	name  string
	paths []string
	store func(text string) error

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
		s.reload()
	}
}

// reload reads all files, or waits for a read that begins after the call: concurrent calls share one, and readPause is
// between two. It reports whether a secret has changed within recentChange, so that a caller also learns of a change
// that another call or the poll found after the caller had loaded the old secret.
func (s *secretFiles) reload() bool {
	called := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.readAt.After(called) {
		<-time.After(time.Until(s.readAt.Add(readPause)))
		s.readAt = time.Now()
		for _, f := range s.all {
			s.refresh(f)
		}
	}
	return time.Since(s.changedAt) < recentChange
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
		part, err := readSecretFile(path)
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

// readSecretFile reads a regular file of at most maxSecretFile bytes; reading a pipe could block forever.
func readSecretFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case info.Size() > maxSecretFile:
		return nil, errors.New("it is larger than 1MiB")
	}
	return os.ReadFile(path)
}
