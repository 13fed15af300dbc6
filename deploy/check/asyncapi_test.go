package check

import (
	"path"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// TestAsyncAPI validates asyncapi.yaml against AsyncAPI's schema and resolves its references. TestAsyncAPIOnBuses
// compares the document with what is published.
//
// The schema in testdata is the one of @asyncapi/specs 6.11.1, unchanged. Copyright 2016-2025 AsyncAPI Initiative; this
// product includes software developed at AsyncAPI Initiative (http://www.asyncapi.com/). Apache License 2.0.
func TestAsyncAPI(t *testing.T) {
	const schema = "check/testdata/asyncapi-3.0.0.json"
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(schema, parse(t, schema)); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile(schema)
	if err != nil {
		t.Fatal(err)
	}
	if err := compiled.Validate(parse(t, "asyncapi.yaml")); err != nil {
		t.Error(err)
	}
	references(t, "asyncapi.yaml", parse(t, "asyncapi.yaml"))
}

// references resolves each reference in a part of the file.
func references(t *testing.T, file string, part any) {
	t.Helper()
	switch part := part.(type) {
	case []any:
		for _, p := range part {
			references(t, file, p)
		}
	case map[string]any:
		for name, p := range part {
			if to, ok := p.(string); ok && name == "$ref" {
				follow(t, file, to)
			}
			references(t, file, p)
		}
	}
}

// follow checks that the target of a reference in the file exists.
func follow(t *testing.T, file, to string) {
	t.Helper()
	other, pointer, _ := strings.Cut(to, "#")
	if other != "" {
		file = path.Join(path.Dir(file), other)
	}
	at := parse(t, file)
	for _, name := range strings.Split(pointer, "/")[1:] {
		within, _ := at.(map[string]any)
		at = within[name]
	}
	if at == nil {
		t.Errorf("%s leads nowhere", to)
	}
}

// parse reads a YAML or JSON file.
func parse(t *testing.T, file string) (value any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, file)), &value); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return value
}
