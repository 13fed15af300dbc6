package event_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/postbridge/postbridge/bridge/event"
)

var updateSchema = flag.Bool("update", false, "write deploy/event.schema.json anew from the Go types")

// TestSchema holds deploy/event.schema.json to the types Event and Order and their comments.
func TestSchema(t *testing.T) {
	got := generateSchema(t)
	file := filepath.Join("..", "..", "deploy", "event.schema.json")
	if *updateSchema {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; go test ./bridge/event -update writes it", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is stale; go test ./bridge/event -update writes it anew", file)
	}
}

// TestSchemaRefuses checks that the schema says something: each of these is no event.
func TestSchemaRefuses(t *testing.T) {
	schema := compile(t, generateSchema(t))
	const id, rest = `"id":"0123456789abcdef0123456789abcdef",`, `"broker":"kite","status":"open",` +
		`"received_at":"2026-01-08T09:53:46Z","verified_by":"checksum","source":"postback"`
	if err := validate(schema, "{"+id+rest+"}"); err != nil {
		t.Fatalf("the event that the others are made from does not fit: %v", err)
	}
	for _, text := range []string{
		`{` + rest + `}`,
		`{"id":"short",` + rest + `}`,
		`{` + id + rest + `,"price":470}`,
		`{` + id + rest + `,"price":"4.7e2"}`,
		`{` + id + rest + `,"quantity":"50"}`,
		`{` + id + rest + `,"quantity":1.5}`,
		`{` + id + rest + `,"updated_time":"2026-01-08 15:23:46"}`,
		`{` + id + rest + `,"order_id":260108152046774}`,
		`{` + id + rest + `,"tag":""}`,
		`{` + id + rest + `,"colour":"red"}`,
		`{` + id + strings.Replace(rest, "open", "OPEN", 1) + `}`,
		`{` + id + strings.Replace(rest, `"checksum"`, `"hope"`, 1) + `}`,
	} {
		if validate(schema, text) == nil {
			t.Errorf("the schema lets this pass: %s", text)
		}
	}
}

func compile(t *testing.T, schema []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("event.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("event.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func validate(schema *jsonschema.Schema, text string) error {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return schema.Validate(doc)
}

// schemaDoc is a JSON Schema, its members in the order in which it is read.
type schemaDoc struct {
	Schema      string     `json:"$schema,omitzero"`
	ID          string     `json:"$id,omitzero"`
	Title       string     `json:"title,omitzero"`
	Description string     `json:"description,omitzero"`
	Type        string     `json:"type,omitzero"`
	Enum        []string   `json:"enum,omitzero"`
	Format      string     `json:"format,omitzero"`
	Pattern     string     `json:"pattern,omitzero"`
	MinLength   int        `json:"minLength,omitzero"`
	Encoding    string     `json:"contentEncoding,omitzero"`
	Properties  properties `json:"properties,omitzero"`
	Required    []string   `json:"required,omitzero"`
	Additional  *bool      `json:"additionalProperties,omitzero"`
}

// properties are named schemas in the order of the fields of the type.
type properties []property

type property struct {
	name   string
	schema schemaDoc
}

func (p properties) MarshalJSONTo(enc *jsontext.Encoder) error {
	if err := enc.WriteToken(jsontext.BeginObject); err != nil {
		return err
	}
	for _, f := range p {
		if err := enc.WriteToken(jsontext.String(f.name)); err != nil {
			return err
		}
		if err := jsonv2.MarshalEncode(enc, f.schema); err != nil {
			return err
		}
	}
	return enc.WriteToken(jsontext.EndObject)
}

func generateSchema(t *testing.T) []byte {
	t.Helper()
	docs := typeDocs(t, "event.go")
	s := schemaDoc{
		Schema:      "https://json-schema.org/draft/2020-12/schema",
		ID:          "https://github.com/postbridge/postbridge/deploy/event.schema.json",
		Title:       event.TypeOrder,
		Description: docs["Event"],
		Type:        "object",
		Additional:  new(bool),
	}
	s.addFields(t, reflect.TypeFor[event.Event](), docs)
	text, err := jsonv2.Marshal(s, jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// addFields adds a property for each field of the struct; those of an embedded struct are its own.
func (s *schemaDoc) addFields(t *testing.T, of reflect.Type, docs map[string]string) {
	t.Helper()
	for f := range of.Fields() {
		if f.Anonymous {
			s.addFields(t, f.Type, docs)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue // not published
		}
		p := fieldSchema(t, name, f.Type)
		p.Description = docs[of.Name()+"."+f.Name]
		if p.Description == "" {
			t.Errorf("%s.%s has no comment", of.Name(), f.Name)
		}
		s.Properties = append(s.Properties, property{name, p})
		if options == "" {
			s.Required = append(s.Required, name)
		}
	}
}

// fieldSchema is what the Go type and the contract say of a field.
func fieldSchema(t *testing.T, name string, of reflect.Type) schemaDoc {
	t.Helper()
	switch of {
	case reflect.TypeFor[event.Status]():
		var words []string
		for _, s := range event.Statuses() {
			words = append(words, string(s))
		}
		return schemaDoc{Type: "string", Enum: words}
	case reflect.TypeFor[event.Quantity]():
		return schemaDoc{Type: "integer"}
	case reflect.TypeFor[[]byte]():
		return schemaDoc{Type: "string", Encoding: "base64", MinLength: 1}
	case reflect.TypeFor[json.RawMessage]():
		return schemaDoc{}
	case reflect.TypeFor[string]():
		return textSchema(name)
	}
	t.Fatalf("%s: no schema for the type %v", name, of)
	return schemaDoc{}
}

func textSchema(name string) schemaDoc {
	s := schemaDoc{Type: "string"}
	switch name {
	case "id":
		s.Pattern = "^[0-9a-f]{32}$"
	case "broker":
		s.Pattern = "^[a-z]+$"
	case "other":
		s.Pattern = "^[a-z_]+$"
	case "verified_by":
		s.Enum = []string{"checksum", "checksum:user_id", "token", "checksum+token", "checksum:user_id+token",
			event.SourceOrderBook}
	case "source":
		s.Enum = []string{event.SourcePostback, event.SourceOrderBook}
	case "price", "trigger_price", "average_price":
		s.Pattern = `^-?[0-9]+(\.[0-9]+)?$`
	case "order_time", "exchange_time", "updated_time", "received_at":
		s.Format = "date-time"
	default:
		s.MinLength = 1
	}
	return s
}

// typeDocs are the comments of the structs in a file and of their fields, by Type and Type.Field.
func typeDocs(t *testing.T, file string) map[string]string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	docs := make(map[string]string)
	for _, d := range parsed.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range decl.Specs {
			if spec, ok := s.(*ast.TypeSpec); ok {
				docs[spec.Name.Name] = oneLine(decl.Doc)
				addFieldDocs(docs, spec)
			}
		}
	}
	return docs
}

func addFieldDocs(docs map[string]string, spec *ast.TypeSpec) {
	of, ok := spec.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, f := range of.Fields.List {
		for _, name := range f.Names {
			docs[spec.Name.Name+"."+name.Name] = oneLine(f.Doc)
		}
	}
}

func oneLine(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }
