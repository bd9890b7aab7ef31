package reference

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/mapping/format"
)

// Editors and their YAML servers understand draft 07 best. The library writes a
// later draft; of what differs, only the name of the draft occurs here, since
// nothing is referred to.
const draft07 = "http://json-schema.org/draft-07/schema#"

// schemaOf is the JSON schema of a format. It accepts all that the parser accepts,
// and rejects what has the wrong structure; what a file says is for the parser.
func schemaOf[T any](root, title string, refine func(*jsonschema.Schema)) ([]byte, error) {
	comments, err := fieldComments(filepath.Join(root, "mapping", "format"))
	if err != nil {
		return nil, err
	}
	r := jsonschema.Reflector{
		FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true,
		Anonymous: true, DoNotReference: true, // whole in one piece: a description beside a $ref is ignored in draft 07
		CommentMap: comments, Mapper: comments.schema,
	}
	s := r.ReflectFromType(reflect.TypeFor[T]())
	s.Version, s.Title = draft07, title
	refine(s)
	data, err := json.MarshalIndent(s, "", "  ")
	return append(data, '\n'), err
}

// fieldDocs are comments by package.Type.Field.
type fieldDocs map[string]string

// fieldComments reads the comments on the fields of the package's structs.
func fieldComments(dir string) (fieldDocs, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	comments := fieldDocs{}
	pkg := reflect.TypeFor[format.Mappings]().PkgPath()
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for name, object := range structs(file) {
			for _, f := range object.Fields.List {
				comments[pkg+"."+name+"."+f.Names[0].Name] = strings.TrimSpace(f.Doc.Text())
			}
		}
	}
	if len(comments) == 0 {
		return nil, fmt.Errorf("%s: no types with fields", dir)
	}
	return comments, nil
}

func structs(file *ast.File) map[string]*ast.StructType {
	found := map[string]*ast.StructType{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if object, ok := spec.Type.(*ast.StructType); ok {
				found[spec.Name.Name] = object
			}
		}
		return true
	})
	return found
}

const (
	namePattern     = `^[A-Za-z_][A-Za-z0-9_]*$`
	tablePattern    = `^[^."]+\.[^."]+$`
	durationPattern = `^\+?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$`
	ratePattern     = `^\s*[0-9.]+([eE][-+]?[0-9]+)?\s*/\s*[smh]\s*$`
)

// schema knows the types that are not what they are in Go.
func (docs fieldDocs) schema(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[format.Duration]():
		return orReference(text(durationPattern), &jsonschema.Schema{Enum: []any{0, "0"}})
	case reflect.TypeFor[format.Rate]():
		return orReference(text(ratePattern))
	case reflect.TypeFor[format.Bool]():
		return orReference(&jsonschema.Schema{Type: "boolean"})
	case reflect.TypeFor[format.Int]():
		return orReference(&jsonschema.Schema{Type: "integer", Minimum: "1"})
	case reflect.TypeFor[format.Name]():
		return orReference(text(namePattern))
	case reflect.TypeFor[format.Table]():
		return orReference(text(tablePattern))
	case reflect.TypeFor[format.Action]():
		return orReference(&jsonschema.Schema{Enum: []any{"insert", "update", "delete", "truncate"}})
	case reflect.TypeFor[format.KeyUse]():
		return docs.keyUse(t)
	case reflect.TypeFor[format.Row]():
		return &jsonschema.Schema{Type: "object"}
	case reflect.TypeFor[format.Identity]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
			{Const: "full"}, {Type: "array", Items: text(""), MinItems: number(1), UniqueItems: true}}}
	case reflect.TypeFor[format.Content]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "object"}, {Type: "array"}, {Type: "string"}}}
	case reflect.TypeFor[format.Purge]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{text(""), {Type: "object", MinProperties: number(1), MaxProperties: number(1)}}}
	case reflect.TypeFor[format.Reason]():
		s := &jsonschema.Schema{}
		for _, name := range mapping.ReasonNames() {
			s.Enum = append(s.Enum, name)
		}
		return s
	case reflect.TypeFor[string]():
		return text("")
	}
	return nil
}

// keyUse is a family's name, or {family: {variable: column}} with the fields of
// KeyUse beside it.
func (docs fieldDocs) keyUse(t reflect.Type) *jsonschema.Schema {
	fields := jsonschema.NewProperties()
	for i := range t.NumField() {
		f := t.Field(i)
		s := docs.schema(f.Type)
		s.Description = docs[t.PkgPath()+"."+t.Name()+"."+f.Name]
		fields.Set(f.Tag.Get("yaml"), s)
	}
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		text(""),
		{Type: "object", Properties: fields, MinProperties: number(1), MaxProperties: number(uint64(1 + t.NumField())),
			AdditionalProperties: &jsonschema.Schema{Type: "object", AdditionalProperties: text("")}},
	}}
}

func number(n uint64) *uint64 { return &n }

// text is text that is not empty.
func text(pattern string) *jsonschema.Schema {
	if pattern == "" {
		return &jsonschema.Schema{Type: "string", MinLength: number(1)}
	}
	return &jsonschema.Schema{Type: "string", Pattern: pattern}
}

// orReference also allows ${NAME} and the like, of whose value a schema knows
// nothing.
func orReference(of ...*jsonschema.Schema) *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: append(of, &jsonschema.Schema{Type: "string", Pattern: `\$\{.*\}`})}
}

func refineMappings(s *jsonschema.Schema) {
	property(s, "version").Enum, property(s, "version").Type = []any{1}, ""
	for _, name := range []string{"classes", "keys"} {
		p := property(s, name)
		p.PropertyNames, p.MinProperties = &jsonschema.Schema{Pattern: namePattern}, number(1)
	}
	property(s, "mappings").MinItems = number(1)
	table, message := oneOf(property(s, "mappings").Items)
	table.AnyOf = required("keys", "dependents")
	table.Not = &jsonschema.Schema{AnyOf: required("message")}
	message.Required = append(message.Required, "keys")
	message.Not = &jsonschema.Schema{AnyOf: required("actions", "columns", "when", "dependents")}
}

func refineTests(s *jsonschema.Schema) {
	property(s, "identity").PropertyNames = text(tablePattern)
	c := property(s, "cases").Items
	c.AnyOf = required("keys", "versions", "dependents", "purges")
	table, message := oneOf(c)
	table.Required = append(table.Required, "action")
	table.Not = &jsonschema.Schema{AnyOf: required("content", "message")}
	message.Required = append(message.Required, "content")
	message.Not = &jsonschema.Schema{AnyOf: required("action", "identity", "old", "new", "lookups")}
}

func property(s *jsonschema.Schema, name string) *jsonschema.Schema {
	p, ok := s.Properties.Get(name)
	if !ok {
		panic("the format has no field " + name)
	}
	return p
}

// oneOf are the two kinds of an entry, in the order of the type's fields.
func oneOf(s *jsonschema.Schema) (table, message *jsonschema.Schema) { return s.OneOf[0], s.OneOf[1] }

func required(names ...string) (any []*jsonschema.Schema) {
	for _, name := range names {
		any = append(any, &jsonschema.Schema{Required: []string{name}})
	}
	return any
}
