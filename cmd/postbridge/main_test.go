package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postbridge/postbridge/publishers/kafka/kafkatest"
)

func TestMain(m *testing.M) {
	testscript.Main(withKafka{m}, map[string]func(){"postbridge": main, "nats-server": natsServer})
}

// withKafka are tests that may share a real Kafka, which ends with them.
type withKafka struct{ *testing.M }

// Run is called by testscript.
func (w withKafka) Run() int { return kafkatest.Main(w.M) }

// result is the exit code and the output of a run of the program.
type result struct {
	code           int
	stdout, stderr string
}

// runWith runs the program with an environment of NAME=value and no input.
func runWith(t *testing.T, environ []string, args ...string) result {
	t.Helper()
	return runInput(t.Context(), "", environ, args...)
}

func runInput(ctx context.Context, stdin string, environ []string, args ...string) result {
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, environ, strings.NewReader(stdin), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"", 2, "postbridge: no command; run 'postbridge help'\n"},
		{"sevre", 2, "postbridge: \"sevre\" is not a command; run 'postbridge help'\n"},
		{"help sevre", 2, "postbridge: \"sevre\" is not a command; run 'postbridge help'\n"},
		{"serve --port 1", 2,
			"postbridge: serve: flag provided but not defined: -port; run 'postbridge serve --help'\n"},
		{"serve now", 2, "postbridge: serve: takes no argument \"now\"; run 'postbridge serve --help'\n"},
		{"config x", 2, "postbridge: config: takes no argument \"x\"; run 'postbridge config --help'\n"},
		{"version x", 2, "postbridge: version: takes no argument \"x\"; run 'postbridge version --help'\n"},
		{"help", 0, ""},
		{"-h", 0, ""},
		{"--help", 0, ""},
		{"version", 0, ""},
		{"--version", 0, ""},
		{"--version x", 2, "postbridge: version: takes no argument \"x\"; run 'postbridge version --help'\n"},
	} {
		t.Run(test.args, func(t *testing.T) {
			got := runWith(t, nil, strings.Fields(test.args)...)
			if got.code != test.code || got.stderr != test.stderr {
				t.Errorf("exit %d, stderr %q\nwant %d, %q", got.code, got.stderr, test.code, test.stderr)
			}
			if (got.code == 0) != (got.stdout != "") {
				t.Errorf("stdout %q", got.stdout)
			}
		})
	}
}

// TestServeFailure checks that the error that ends serve is logged once, in the last line.
func TestServeFailure(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	settings := "DHAN_TOKENS=t LISTEN=127.0.0.1:0 ADMIN_LISTEN=127.0.0.1:0 DATA_DIR=" + t.TempDir()
	got := runWith(t, environ(settings+" NATS_LISTEN="+l.Addr().String()), "serve")
	lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
	var last struct{ Level, Msg, Error string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || got.code != 1 {
		t.Fatalf("%v: %+v", err, got)
	}
	want := "cannot open nats: the embedded NATS server cannot listen on " + l.Addr().String() +
		": address already in use; set POSTBRIDGE_NATS_LISTEN"
	if last.Level != "ERROR" || last.Msg != "postbridge ends" || last.Error != want {
		t.Errorf("%+v\nwant %s", last, want)
	}
	if n := strings.Count(got.stderr, want); n != 1 {
		t.Errorf("told %d times:\n%s", n, got.stderr)
	}
}

// TestHelp checks that each help fits a screen and has an example, and that all ways to print it agree.
func TestHelp(t *testing.T) {
	if got := runWith(t, nil, "help"); got.stdout != mainHelp {
		t.Errorf("help prints %q", got.stdout)
	}
	checkScreen(t, mainHelp)
	for _, c := range commands() {
		t.Run(c.name, func(t *testing.T) {
			checkScreen(t, c.help)
			if !strings.Contains(mainHelp, "\n  "+c.name+" ") {
				t.Error("the main help does not list it")
			}
			for _, args := range [][]string{{c.name, "--help"}, {c.name, "-h"}, {"help", c.name}} {
				if got := runWith(t, nil, args...); got != (result{0, c.help, ""}) {
					t.Errorf("%v: %+v", args, got)
				}
			}
		})
	}
}

func checkScreen(t *testing.T, help string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(help, "\n"), "\n")
	if len(lines) > 24 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if len(line) > 100 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	if !strings.Contains(help, "Example") {
		t.Error("no example")
	}
}

// TestHelpFlags checks that the help has each flag, and no other.
func TestHelpFlags(t *testing.T) {
	for name, of := range map[string]struct {
		flags *flag.FlagSet
		help  string
	}{
		"send":   {sendFlags(new(sendOptions)), sendHelp},
		"tail":   {tailFlags(new(tailOptions)), tailHelp},
		"doctor": {doctorFlags(new(doctorOptions)), doctorHelp},
	} {
		t.Run(name, func(t *testing.T) {
			var defined, described []string
			of.flags.VisitAll(func(f *flag.Flag) { defined = append(defined, f.Name) })
			for line := range strings.Lines(of.help) {
				if !strings.HasPrefix(line, "  --") {
					continue
				}
				for word := range strings.FieldsSeq(line) {
					if flag, ok := strings.CutPrefix(word, "--"); ok {
						described = append(described, strings.TrimSuffix(flag, ","))
					}
				}
			}
			slices.Sort(described)
			described = slices.Compact(described)
			if !slices.Equal(defined, described) {
				t.Errorf("defined %v\ndescribed %v", defined, described)
			}
		})
	}
}

// write makes a file in a new directory and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := t.TempDir() + "/" + name
	rewrite(t, path, text)
	return path
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
