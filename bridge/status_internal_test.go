package bridge

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
)

var updateReference = flag.Bool("update", false, "write the table of /status in cmd/postbridge/README.md anew")

// TestStatusReference compares the table of /status in the README with the structs, and its sample with their encoding.
func TestStatusReference(t *testing.T) {
	const path, begin, end = "../cmd/postbridge/README.md", "<!-- status -->\n", "<!-- /status -->"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	table, after, ok2 := strings.Cut(rest, end)
	_, sample, ok3 := strings.Cut(before, "```json\n{\n  \"version\"")
	sample, _, ok4 := strings.Cut(sample, "```")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		t.Fatalf("%s needs a sample of /status, and lines %q and %q for the table", path, strings.TrimSpace(begin), end)
	}
	want := "| member | meaning |\n| --- | --- |\n" + statusRows(t, memberComments(t), "", reflect.TypeFor[status]())
	if *updateReference {
		if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if table != want {
		t.Errorf("the table of /status is stale; "+
			"go test ./bridge -run StatusReference -update writes it anew:\n%s", want)
	}

	sample = "{\n  \"version\"" + sample
	var st status
	if err := json.Unmarshal([]byte(sample), &st); err != nil {
		t.Fatal(err)
	}
	var encoded bytes.Buffer
	enc := json.NewEncoder(&encoded)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(st); err != nil || encoded.String() != sample {
		t.Errorf("%v; the sample should be\n%s", err, &encoded)
	}
}

// statusRows returns a row for each member of a struct and of the structs in it.
func statusRows(t *testing.T, meanings map[string]string, path string, of reflect.Type) string {
	var b strings.Builder
	for i := range of.NumField() {
		f := of.Field(i)
		if f.Anonymous {
			b.WriteString(statusRows(t, meanings, path, f.Type))
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			continue // not exported
		}
		member, inner := path+name, f.Type
		switch {
		case f.Type.Kind() == reflect.Map && name == "postbacks":
			member, inner = member+".<broker>", f.Type.Elem()
		case f.Type.Kind() == reflect.Map:
			member, inner = member+".<bus>", f.Type.Elem()
		case f.Type.Kind() == reflect.Slice:
			member, inner = member+"[]", f.Type.Elem()
		}
		meaning := meanings[of.Name()+"."+f.Name]
		if meaning == "" {
			t.Errorf("%s.%s has no comment", of.Name(), f.Name)
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", member, meaning)
		if inner.Kind() == reflect.Struct && inner.PkgPath() == of.PkgPath() {
			b.WriteString(statusRows(t, meanings, member+".", inner))
		}
	}
	return b.String()
}

// memberComments returns the comments of the members of all structs of the package, by struct and member.
func memberComments(t *testing.T) map[string]string {
	comments := make(map[string]string)
	for _, name := range []string{"status.go", "pumpstate.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if members, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range members.Fields.List {
					text := strings.Join(strings.Fields(f.Doc.Text()+f.Comment.Text()), " ")
					for _, member := range f.Names {
						comments[spec.Name.Name+"."+member.Name] = text
					}
				}
			}
			return false
		})
	}
	return comments
}
