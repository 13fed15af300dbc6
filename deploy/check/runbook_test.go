package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSeverities compares the table of alerts in the runbook with the rules.
func TestSeverities(t *testing.T) {
	words := map[string]string{"critical": "page", "warning": "ticket"}
	var want, has []string
	for _, m := range regexp.MustCompile(`(?s)alert: Postbridge(\w+)\n.*?severity: (\w+)`).FindAllStringSubmatch(
		read(t, "prometheus/rules.yaml"), -1) {
		want = append(want, m[1]+" "+words[m[2]])
	}
	for _, m := range regexp.MustCompile(`(?m)^\| \[(\w+)\]\(#postbridge(\w+)\) \| (page|ticket)\b`).FindAllStringSubmatch(
		read(t, "README.md"), -1) {
		if !strings.EqualFold(m[1], m[2]) {
			t.Errorf("%s points to %s", m[1], m[2])
		}
		has = append(has, m[1]+" "+m[3])
	}
	if len(want) == 0 || !slices.Equal(has, want) {
		t.Errorf("the table has\n%q\nthe rules have\n%q", has, want)
	}
}

// TestSystemdCommands runs the shell functions of README.md for hosts with systemd: they give the program the user and
// the settings of its unit.
func TestSystemdCommands(t *testing.T) {
	bin := filepath.Dir(build(t))
	for function, row := range map[string]struct{ user, settings, command, want string }{
		"as_postbridge": {"postbridge", "postbridge.env", "config", "POSTBRIDGE_NATS_URL=nats://"},
		"as_reconcile":  {"postbridge-reconcile", "postbridge-reconcile.env", "--help", "postbridge reconcile"},
	} {
		t.Run(function, func(t *testing.T) {
			define := regexp.MustCompile(`(?ms)^` + function + `\(\) \{\n.*?^\}\n`).FindString(read(t, "README.md"))
			if define == "" {
				t.Fatalf("README.md does not define %s", function)
			}
			etc, stubs := t.TempDir(), t.TempDir()
			// runuser needs root and the user. This one checks how it is called.
			write(t, stubs, "runuser", "#!/bin/sh\n[ \"$1 $2 $3\" = '-u "+row.user+" --' ] || exit 9\nshift 3\nexec \"$@\"\n")
			settings := strings.ReplaceAll(read(t, "systemd/"+row.settings), "/etc/postbridge", etc)
			write(t, etc, strings.TrimPrefix(row.settings, "postbridge-"), settings)
			for _, file := range regexp.MustCompile(regexp.QuoteMeta(etc)+`/(\S+)`).FindAllStringSubmatch(settings, -1) {
				write(t, etc, file[1], "1234=secret\n")
			}
			cmd := exec.Command("sh", "-c", strings.ReplaceAll(define, "/etc/postbridge", etc)+function+" "+row.command)
			cmd.Env = []string{"PATH=" + stubs + ":" + bin + ":" + os.Getenv("PATH")}
			if output, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(output), row.want) {
				t.Errorf("%v\n%s", err, output)
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

// TestImage checks the commands of README.md that build an image: with the Dockerfile and the argument that it has, and
// the tag that the chart uses.
func TestImage(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "README.md"), "\n## Build an image\n")
	section, _, _ = strings.Cut(section, "\n## ")
	chart := read(t, "../helm/postbridge/Chart.yaml")
	version := regexp.MustCompile(`(?m)^appVersion: "?([^"\n]+)`).FindStringSubmatch(chart)
	builds := regexp.MustCompile(`(?m)^docker buildx build -f deploy/Dockerfile --build-arg VERSION=(\S+) --tag `+
		`\S*postbridge:(\S+) --(?:load|push) \.$`).FindAllStringSubmatch(section, -1)
	if version == nil || len(builds) != 2 ||
		!strings.Contains(section, "\nkind load docker-image postbridge:"+version[1]+"\n") {
		t.Fatalf("version %q of the chart, commands %q", version, builds)
	}
	for _, b := range builds {
		if b[1] != version[1] || b[2] != version[1] {
			t.Errorf("%s: the chart wants %s", b[0], version[1])
		}
	}
	if !regexp.MustCompile(`(?m)^ARG .*\bVERSION$`).MatchString(read(t, "Dockerfile")) {
		t.Error("the Dockerfile has no argument VERSION")
	}
}
