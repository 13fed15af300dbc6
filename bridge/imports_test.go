package bridge_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "github.com/postbridge/postbridge/"

// listed is what go list says of a package.
type listed struct {
	ImportPath string
	Imports    []string
}

// TestImports holds the direction of imports: cmd → brokers, publishers → bridge → bridge/spool → standard library, and
// all of them → bridge/event → standard library. Sibling adapters never see each other.
func TestImports(t *testing.T) {
	for _, p := range list(t, "./...") {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, path := range p.Imports {
			to, ours := strings.CutPrefix(path, module)
			if reason := forbidden(from, to, ours, isStandard(path)); reason != "" {
				t.Errorf("%s imports %s: %s", from, path, reason)
			}
		}
	}
}

func TestForbidden(t *testing.T) {
	for _, v := range []struct {
		from, to  string
		forbidden bool
	}{
		{"bridge/event", "encoding/json", false},
		{"bridge/event", "golang.org/x/text", true},
		{"bridge/event", jsonExperiment + "/jsontext", true},
		{"bridge/event", module + "bridge", true},
		{"bridge/event", module + "bridge/scan", true},
		{"bridge/event", module + "bridge/spool", true},
		{"bridge/scan", jsonExperiment + "/jsontext", false},
		{"bridge/scan", module + "bridge/event", false},
		{"bridge/scan", module + "bridge", true},
		{"bridge/spool", module + "bridge/event", true},
		{"bridge", module + "bridge/event", false},
		{"bridge", module + "bridge/scan", false},
		{"bridge", module + "bridge/spool", false},
		{"bridge", module + "brokers/body", true},
		{"bridge", jsonExperiment, true},
		{"brokers/body", module + "bridge/scan", false},
		{"brokers/body", module + "bridge", true},
		{"brokers/kite", module + "bridge", false},
		{"brokers/kite", module + "bridge/event", false},
		{"brokers/kite", module + "bridge/spool", true},
		{"brokers/kite", module + "brokers/body", false},
		{"brokers/kite", module + "brokers/dhan", true},
		{"brokers/kite", module + "publishers/nats", true},
		{"brokers/brokertest", jsonExperiment + "/jsontext", false},
		{"publishers/kafka", module + "bridge/event", false},
		{"publishers/kafka", module + "brokers/kite", true},
		{"cmd/postbridge", module + "bridge/event", false},
		{"cmd/postbridge", jsonExperiment, true},
		{"brokers", module + "cmd/postbridge", true},
	} {
		to, ours := strings.CutPrefix(v.to, module)
		if reason := forbidden(v.from, to, ours, isStandard(v.to)); (reason != "") != v.forbidden {
			t.Errorf("%s imports %s: %q", v.from, v.to, reason)
		}
	}
}

// jsonExperiment has no release yet, so one package wraps it.
const jsonExperiment = "github.com/go-json-experiment/json"

// forbidden says why a package must not import another; empty if it may.
func forbidden(from, to string, ours, standard bool) string {
	under := func(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	switch {
	case under(from, "bridge/spool") && !standard && to != "bridge/spool" &&
		to != "golang.org/x/sys/windows":
		return "the spool uses the standard library only, and x/sys on Windows"
	case under(from, "bridge/event") && !standard:
		return "consumers import the events, which use the standard library only"
	case under(to, jsonExperiment) && from != "bridge/scan" && !strings.HasSuffix(from, "test"):
		return "bridge/scan wraps the JSON package without a release"
	case !ours:
		return ""
	case from == "bridge/scan" && to != "bridge/event":
		return "the scanner knows the members of bodies only"
	case under(from, "bridge") && !under(to, "bridge"):
		return "the bridge knows no adapter"
	case from == "brokers/body" && to != "bridge/event" && to != "bridge/scan":
		return "the values of members have nothing to do with the bridge"
	case under(to, "cmd") || under(to, "deploy"):
		return "nothing imports a command"
	case under(from, "brokers") && under(to, "publishers"), under(from, "publishers") && under(to, "brokers"):
		return "a broker and a bus never meet"
	case (under(from, "brokers") || under(from, "publishers")) && under(to, "bridge/spool"):
		return "an adapter does not see the spool"
	case siblings(from, to):
		return "sibling adapters never see each other"
	}
	return ""
}

// siblings reports whether both are adapters of the same kind: packages right under brokers or publishers that are not
// there for all of them.
func siblings(from, to string) bool {
	kind := func(path string) string {
		dir, name, _ := strings.Cut(path, "/")
		shared := name == "" || name == "body" || name == "book" || name == "proof" || name == "tlsfiles" ||
			strings.HasSuffix(name, "test")
		if shared || dir != "brokers" && dir != "publishers" {
			return ""
		}
		return dir
	}
	return from != to && kind(from) != "" && kind(from) == kind(to)
}

func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// TestOnlyCommandTouchesTheProcess holds that environment and exits belong to cmd: whatever else reads a variable or
// ends the process cannot be tested or stopped in order.
func TestOnlyCommandTouchesTheProcess(t *testing.T) {
	banned := regexp.MustCompile(`os\.(Getenv|LookupEnv|Environ|Exit)\(|signal\.Notify|log\.Fatal|func init\(\)`)
	for _, dir := range []string{"../bridge", "../brokers", "../publishers"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.HasSuffix(path, "test") {
				return fs.SkipDir // for tests only
			}
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if m := banned.Find(text); m != nil {
				t.Errorf("%s has %s, which belongs to cmd", path, m)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func list(t *testing.T, pattern string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", pattern)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
