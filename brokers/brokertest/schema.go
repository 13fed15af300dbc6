package brokertest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// eventSchema is deploy/event.schema.json.
type eventSchema struct{ compiled *jsonschema.Schema }

func compileSchema(t testing.TB) eventSchema {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "deploy", "event.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("event.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("event.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return eventSchema{compiled}
}

func (s eventSchema) validate(event []byte) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(event))
	if err != nil {
		return err
	}
	return s.compiled.Validate(doc)
}

// moduleRoot returns the directory of go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("there is no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}
