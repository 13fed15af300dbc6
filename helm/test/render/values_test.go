package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// value is a value of values.yaml, with the comment above it.
type value struct{ path, text, meaning string }

// chartValues reads the leaves of values.yaml, and the maps that are empty or may have any keys.
func chartValues(t *testing.T) (all []value) {
	t.Helper()
	text, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	collect(t, doc.Content[0], "", "", &all)
	return all
}

func collect(t *testing.T, m *yaml.Node, prefix, above string, all *[]value) {
	t.Helper()
	for i := 0; i < len(m.Content); i += 2 {
		key, v := m.Content[i], m.Content[i+1]
		meaning := meaningOf(key.HeadComment)
		path := prefix + key.Value
		if v.Kind == yaml.MappingNode && len(v.Content) > 0 && !free(path) {
			collect(t, v, path+".", strings.TrimSpace(above+" "+meaning), all)
			above = ""
			continue
		}
		text, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if v.Kind != yaml.ScalarNode {
			var data any
			if err := v.Decode(&data); err != nil {
				t.Fatal(err)
			}
			if text, err = json.Marshal(data); err != nil {
				t.Fatal(err)
			}
		}
		*all = append(*all, value{path, strings.TrimSpace(string(text)), strings.TrimSpace(above + " " + meaning)})
		above = "" // the comment of a group belongs to its first value
	}
}

// free reports whether a map may have any keys; it counts as one value.
func free(path string) bool {
	return slices.Contains([]string{
		"resources", "reconcile.resources", "podSecurityContext", "securityContext", "dashboard.labels",
	}, path)
}

// meaningOf returns a comment in one line, without section headings.
func meaningOf(comment string) string {
	var words []string
	for line := range strings.Lines(comment) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#"))
		if !strings.HasPrefix(line, "----") {
			words = append(words, strings.Fields(line)...)
		}
	}
	return strings.Join(words, " ")
}

// TestReadme compares the table in the chart's README with values.yaml.
func TestReadme(t *testing.T) {
	const path, begin, end = chart + "/README.md", "<!-- values -->\n", "<!-- /values -->"
	var table bytes.Buffer
	table.WriteString("| value | default | meaning |\n| --- | --- | --- |\n")
	for _, v := range chartValues(t) {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", v.path, v.text, strings.ReplaceAll(v.meaning, "|", `\|`))
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	has, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("the README needs lines %q and %q; the table belongs between them", begin, end)
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if has != table.String() {
		t.Error("the table in the chart's README is stale; go test ./render -update writes it anew")
	}
}

// TestSchema checks that the schema allows exactly the values of values.yaml.
func TestSchema(t *testing.T) {
	text, err := os.ReadFile(chart + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root schema
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"global", "enabled"} { // set by parent charts
		delete(root.Properties, name)
	}
	var inSchema, inValues []string
	root.walk("", func(path string, s schema) {
		if s.Properties != nil && string(s.AdditionalProperties) != "false" {
			t.Errorf("the schema allows anything in %q", path)
		}
		if s.Properties == nil {
			inSchema = append(inSchema, path)
		}
	})
	for _, v := range chartValues(t) {
		inValues = append(inValues, v.path)
		if v.meaning == "" && !strings.Contains(v.path, "image.") && !obvious(v.path) {
			t.Errorf("%s has no comment", v.path)
		}
	}
	slices.Sort(inSchema)
	slices.Sort(inValues)
	if !slices.Equal(inSchema, inValues) {
		t.Errorf("the schema has\n%s\nvalues.yaml has\n%s", strings.Join(inSchema, "\n"), strings.Join(inValues, "\n"))
	}
}

type schema struct {
	Properties           map[string]schema
	AdditionalProperties json.RawMessage
}

func (s schema) walk(path string, visit func(string, schema)) {
	visit(path, s)
	for name, p := range s.Properties {
		p.walk(strings.TrimPrefix(path+"."+name, "."), visit)
	}
}

// obvious are values that every Kubernetes user knows, without a comment in the chart.
func obvious(path string) bool {
	last := path[strings.LastIndex(path, ".")+1:]
	return slices.Contains([]string{
		"enabled", "annotations", "labels", "hostnames", "className", "host", "port", "type", "maxUnavailable",
		"accessMode",
		"priorityClassName", "nodeSelector", "tolerations", "affinity", "podAnnotations", "podLabels", "resources",
		"interval",
		"securityContext", "extraVolumes", "extraVolumeMounts", "ordinals",
	}, last)
}

// TestFiles compares the files that the chart copies from elsewhere with their originals.
func TestFiles(t *testing.T) {
	for copied, from := range map[string]string{
		"files/rules.yaml": "deploy/prometheus/rules.yaml", "files/dashboard.json": "deploy/grafana/dashboard.json",
	} {
		is, err := os.ReadFile(chart + "/" + copied)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(top + "/" + from)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(is, want) {
			continue
		}
		if !*update {
			t.Errorf("%s is not as %s; go test ./render -update copies it", copied, from)
		} else if err := os.WriteFile(chart+"/"+copied, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
