package kafkatest

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Version is the pinned Apache Kafka.
const Version = "4.3.1"

// plugin is the pinned Maven goal that fetches the jars.
const plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"

var (
	//go:embed pom.xml
	pom []byte
	//go:embed log4j2.properties
	log4j []byte
)

// Jars returns the directory of the jars of Kafka and its tools. The first call on a machine fetches them with Maven
// into the user's cache directory; other processes wait for it.
func Jars(ctx context.Context) (dir string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "postbridge")
	// The name has all inputs, so a change of one fetches again.
	home := filepath.Join(cache, fmt.Sprintf("kafka-%s-%.4x", Version, sha256.Sum256(pom)))
	if _, err := exec.LookPath("java"); err != nil {
		return "", fmt.Errorf("install Java 17 or newer: %w", err)
	}
	if exists(archive(home)) { // created last
		return lib(home), nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, home+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if !exists(home) {
		if err := fetch(ctx, home); err != nil {
			return "", fmt.Errorf("cannot fetch the jars of Kafka: %w", err)
		}
	}
	if !exists(archive(home)) {
		if err := train(ctx, home); err != nil {
			return "", fmt.Errorf("cannot run the Kafka that was fetched: %w", err)
		}
	}
	return lib(home), nil
}

func lib(home string) string     { return filepath.Join(home, "lib") }
func archive(home string) string { return filepath.Join(home, "classes.jsa") }

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// lock waits for an exclusive lock on the file. The kernel releases it at the end of the process.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, 100*time.Millisecond, func() (bool, error) {
		return tryLock(f)
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// fetch creates the directory home with the jars, atomically.
func fetch(ctx context.Context, home string) (err error) {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("install Maven, which is needed this once: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(home), ".fetch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := os.WriteFile(filepath.Join(tmp, "pom.xml"), pom, 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mvn, "-q", "-B", plugin, "-DincludeScope=runtime", "-DoutputDirectory="+lib(tmp))
	cmd.Dir = tmp
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mvn: %w\n%s", err, tail(output))
	}
	return os.Rename(tmp, home)
}

// train starts a node once and has its JVM write the loaded classes to an archive (class data sharing). That halves the
// start time of later nodes, and shows that this Java can run this Kafka.
func train(ctx context.Context, home string) (err error) {
	tmp, err := os.MkdirTemp(home, ".train-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	classes := filepath.Join(tmp, "classes.jsa")
	c, err := start(ctx, lib(home), Options{Dir: tmp, JVM: []string{"-XX:ArchiveClassesAtExit=" + classes}})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Stop(0); err != nil {
		return err
	}
	return os.Rename(classes, archive(home))
}

// java returns the command line of a JVM with these jars, to which the class and its arguments are appended.
func java(jars, tmp, log4j string) ([]string, error) {
	path, err := filepath.Glob(filepath.Join(jars, "*.jar"))
	if err != nil {
		return nil, err
	}
	slices.Sort(path) // the archive is valid only for the same class path
	args := []string{
		// Only the first compiler: the start dominates, not the work.
		"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError",
		// Otherwise the JVM warns on stdout of an unusable archive, such as that of another Java.
		"-Xlog:disable", "-Xlog:all=error:stderr",
		// A killed JVM leaves unpacked native libraries there.
		"-Djava.io.tmpdir=" + tmp,
		"-Dlog4j2.configurationFile=" + log4j,
		"-cp", strings.Join(path, string(filepath.ListSeparator)),
	}
	if a := archive(filepath.Dir(jars)); exists(a) {
		args = append(args, "-XX:SharedArchiveFile="+a)
	}
	return args, nil
}
