package event_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// memberRules is what a consumer may rely on of a member.
type memberRules struct {
	Type     any      `json:"type"`
	Pattern  string   `json:"pattern"`
	Format   string   `json:"format"`
	Encoding string   `json:"contentEncoding"`
	Enum     []string `json:"enum"`
}

// releasedSchema is what a consumer may rely on of a schema.
type releasedSchema struct {
	Title      string                 `json:"title"`
	Properties map[string]memberRules `json:"properties"`
	Required   []string               `json:"required"`
}

// TestSchemaCompatible compares the schema with that of the last release, testdata/released.schema.json, which is replaced
// with a release. Within postbridge.order.v1, members and words may be added; nothing is removed or changed.
func TestSchemaCompatible(t *testing.T) {
	released, now := readSchema(t, "testdata/released.schema.json"), readSchema(t, "../../deploy/event.schema.json")
	if released.Title != now.Title {
		t.Skipf("%s comes after %s", now.Title, released.Title)
	}
	for name, want := range released.Properties {
		got, ok := now.Properties[name]
		added := slices.DeleteFunc(slices.Clone(got.Enum), func(word string) bool { return slices.Contains(want.Enum, word) })
		if !ok || len(got.Enum)-len(added) != len(want.Enum) || (want.Enum == nil) != (got.Enum == nil) {
			t.Errorf("%s: removed, or some of its words: %v, want %v", name, got.Enum, want.Enum)
		}
		got.Enum, want.Enum = nil, nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v as released", name, got, want)
		}
	}
	for _, name := range released.Required {
		if !slices.Contains(now.Required, name) {
			t.Errorf("%s is always there in the release, and not any more", name)
		}
	}
}

// TestGoldenCompatible validates the events of all golden files with the schema of the last release, as a consumer does
// who ignores members that it does not know.
func TestGoldenCompatible(t *testing.T) {
	text, err := os.ReadFile("testdata/released.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	delete(doc, "additionalProperties")
	text, err = json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	schema := compile(t, text)
	files, err := filepath.Glob("../../brokers/*/testdata/events/*.json")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, file := range files {
		golden, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(schema, string(golden)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func readSchema(t *testing.T, file string) (s releasedSchema) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s); err != nil || len(s.Properties) == 0 {
		t.Fatalf("%s: %d properties, %v", file, len(s.Properties), err)
	}
	return s
}
