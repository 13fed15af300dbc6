package main

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// ---- links --------------------------------------------------------------------------------------------------------

// TestLinks checks that each relative link in a document leads to a file that exists, and to a heading in it.
func TestLinks(t *testing.T) {
	const top = "../.."
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	links := 0
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && slices.Contains([]string{".git", ".tools", "data"}, d.Name()) {
			return fs.SkipDir
		}
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			if broken := followLink(path, m[1]); broken != nil {
				t.Errorf("%s: %s: %v", path, m[1], broken)
			}
		}
		return err
	})
	if err != nil || links < 40 {
		t.Errorf("%d links, %v", links, err)
	}
}

// followLink returns an error unless the target of a link in a document exists.
func followLink(document, target string) error {
	path, anchor, _ := strings.Cut(target, "#")
	if path == "" {
		path = document
	} else {
		path = filepath.Join(filepath.Dir(document), path)
	}
	if _, err := os.Stat(path); err != nil || anchor == "" {
		return err
	}
	text, err := os.ReadFile(path)
	if err == nil && !slices.Contains(anchors(string(text)), anchor) {
		err = fmt.Errorf("no heading has the anchor %s", anchor)
	}
	return err
}

// anchors returns the anchors of a document's headings, as GitHub makes them.
func anchors(text string) (all []string) {
	drop := regexp.MustCompile(`[^\w\- ]`)
	code := false
	for line := range strings.Lines(text) {
		code = code != strings.HasPrefix(line, "```")
		if heading := strings.TrimLeft(line, "#"); heading != line && !code {
			anchor := drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
			all = append(all, strings.ReplaceAll(anchor, " ", "-"))
		}
	}
	return all
}

// ---- commands and programs ----------------------------------------------------------------------------------------

// cmdDocument runs a block of commands of a document as written, with the addresses of the story in place of the
// default ones: document FILE FIRST_WORDS. A program in Go is built as ./example, one in Python becomes example.py, one in
// Java Example.java.
func cmdDocument(ts *testscript.TestScript, neg bool, args []string) {
	text, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	pattern := regexp.MustCompile("(?ms)^ *```(sh|go|python|java)\n *(" + regexp.QuoteMeta(args[1]) + ".*?)^ *```$")
	blocks := pattern.FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 1 {
		ts.Fatalf("%s has %d blocks that begin with %q, want one", args[0], len(blocks), args[1])
	}
	block := strings.NewReplacer(
		"127.0.0.1:8080", ts.Getenv("POSTBRIDGE_LISTEN"),
		"127.0.0.1:9090", ts.Getenv("POSTBRIDGE_ADMIN_LISTEN"),
		"127.0.0.1:4222", ts.Getenv("POSTBRIDGE_NATS_LISTEN"),
		"127.0.0.1:9092", ts.Getenv("POSTBRIDGE_KAFKA_BROKERS"),
		"deploy/samples", ts.Getenv("SAMPLES"),
	).Replace(blocks[0][2])
	switch blocks[0][1] {
	case "go":
		ts.Check(buildExample(block, ts.MkAbs("main.go"), ts.MkAbs("example")))
		return
	case "python":
		ts.Check(os.WriteFile(ts.MkAbs("example.py"), []byte(block), 0o600))
		return
	case "java":
		ts.Check(os.WriteFile(ts.MkAbs("Example.java"), []byte(block), 0o600))
		return
	}
	if err := ts.Exec("sh", "-exc", block); (err != nil) != neg {
		ts.Fatalf("%s: %v", block, err)
	}
}

// buildExample builds a program with the versions of the libraries in go.mod: an overlay puts it into this module. With
// -race it is built so, too: the libraries are compiled already.
func buildExample(program, source, binary string) error {
	if err := os.WriteFile(source, []byte(program), 0o600); err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	replace := map[string]string{filepath.Join(dir, "example", "main.go"): source}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	if err := os.WriteFile(source+".json", overlay, 0o600); err != nil {
		return err
	}
	return goBuild(binary, "./example", "-overlay", source+".json")
}

// cmdBuild builds a program of this repository: build PACKAGE BINARY.
func cmdBuild(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(goBuild(ts.MkAbs(args[1]), args[0]))
}

func goBuild(binary, program string, flags ...string) error {
	args := append([]string{"build", fmt.Sprint("-race=", withRace()), "-o", binary}, flags...)
	out, err := exec.Command("go", append(args, program)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// withRace reports whether the tests are built with -race.
func withRace() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// ---- metrics ------------------------------------------------------------------------------------------------------

// cmdMetrics compares a table of metrics in a document with the metrics of a command at a URL. It waits until a metric
// is exported that comes late: metrics FILE COMMAND URL METRIC.
func cmdMetrics(ts *testscript.TestScript, _ bool, args []string) {
	document, command, url, late := ts.MkAbs(args[0]), args[1], args[2], args[3]
	var want string
	eventually(ts, "all metrics", func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		exported, err := io.ReadAll(resp.Body)
		want = metricsTable(string(exported))
		if err == nil && !strings.Contains(want, "`"+late+"`") {
			err = fmt.Errorf("%s is not exported yet", late)
		}
		return err
	})
	ts.Check(compareSection(document, command+" metrics", want))
}

// compareSection compares the part of a document between two markers with what it should be; -update writes it.
func compareSection(path, name, want string) error {
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	has, after, ok2 := strings.Cut(rest, end)
	switch {
	case !ok1 || !ok2:
		return fmt.Errorf("%s needs lines %q and %q; the table belongs between them",
			path, strings.TrimSpace(begin), end)
	case *update:
		return os.WriteFile(path, []byte(before+begin+want+end+after), 0o644)
	case has != want:
		return fmt.Errorf("%s: the table of %s is stale; "+
			"go test ./cmd/postbridge -run 'Readme|Stories' -update writes it anew:\n%s", path, name, want)
	}
	return nil
}

// metricsTable returns the table of postbridge's own metrics in Prometheus' text format.
func metricsTable(exported string) string {
	types, labels := make(map[string]string), make(map[string][]string)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (postbridge_\w+) (\w+)$`).FindAllStringSubmatch(exported, -1) {
		types[m[1]] = m[2]
	}
	for _, m := range regexp.MustCompile(`(?m)^(postbridge_\w+)\{(.*)\}`).FindAllStringSubmatch(exported, -1) {
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" && !slices.Contains(labels[m[1]], "`"+l[1]+"`") {
				labels[m[1]] = append(labels[m[1]], "`"+l[1]+"`")
			}
		}
	}
	var b strings.Builder
	b.WriteString("| name | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range regexp.MustCompile(`(?m)^# HELP (postbridge_\w+) (.*)$`).FindAllStringSubmatch(exported, -1) {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m[1], types[m[1]], strings.Join(labels[m[1]], ", "), m[2])
	}
	return b.String()
}
