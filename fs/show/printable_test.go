package show

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"varve/chain"
)

// hostile is what a terminal obeys, or what makes a line look like another one.
const hostile = "x\x1b[31m\u009b2J\x7f\r\n\t\u202e\u2066\u2028\U000e0001\xff"

// fill sets every text in a value.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), text)
			}
		}
	}
}

// hostileStatus is one in which every text is hostile, and the tree is drawn all the same.
func hostileStatus() chain.Status {
	var st chain.Status
	fill(reflect.ValueOf(&st).Elem(), hostile)
	st.Leaf, st.Layers[0].ID, st.Layers[0].Parent = "2", "1", nil
	leaf := st.Layers[0]
	parent := "1"
	leaf.ID, leaf.Parent, leaf.State = "2", &parent, "leaf"
	st.Layers = append(st.Layers, leaf)
	st.Job.Layer = "1"
	st.Layers[0].State = "base"
	return st
}

func obeyed(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && (!unicode.IsPrint(r) || r == unicode.ReplacementChar) })
}

func TestNothingRawInTables(t *testing.T) {
	st := hostileStatus()
	before, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	for name, draw := range map[string]func(*bytes.Buffer) error{
		"status": func(b *bytes.Buffer) error { return Table(b, st, TreeOptions{}) },
		"tree":   func(b *bytes.Buffer) error { return Tree(b, st, TreeOptions{}) },
		"list":   func(b *bytes.Buffer) error { return LayerTable(b, st) },
	} {
		var text bytes.Buffer
		if err := draw(&text); err != nil || obeyed(text.String()) {
			t.Errorf("%s: %v %q", name, err, text.String())
		}
	}
	if after, err := json.Marshal(st); err != nil || !bytes.Equal(before, after) {
		t.Error("the status itself was changed")
	}
}

func TestPrintableJSON(t *testing.T) {
	var doc bytes.Buffer
	if err := JSON(&doc, hostileStatus()); err != nil {
		t.Fatal(err)
	}
	text := PrintableJSON(append([]byte("\r\t"), doc.Bytes()...))
	if obeyed(string(text)) {
		t.Errorf("%q", text)
	}
	var was, is any
	if err := json.Unmarshal(doc.Bytes(), &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &is); err != nil || !reflect.DeepEqual(was, is) {
		t.Errorf("%v: %s", err, text)
	}
}
