// Package words holds the documentation against the source: every text of an
// error that a user can meet stands in docs/troubleshooting.md, or in a list of
// internal ones with the reason why not.
package words

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Text is the text of an error as the source has it.
type Text struct {
	File string // within the checkout
	Line int
	Text string // what differs from error to error is "…"
	// Ends is what the error ends with: "err" for another error, the name of a
	// sentinel such as "ErrCorrupt", or "" for words of its own.
	Ends string
}

func (t Text) String() string { return fmt.Sprintf("%s:%d: %q", t.File, t.Line, t.Text) }

// Source reads the texts of the errors that the Go files below some directories of
// the checkout make, tests left out.
func Source(checkout string, directories ...string) ([]Text, error) {
	var texts []Text
	for _, directory := range directories {
		err := filepath.WalkDir(filepath.Join(checkout, directory), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(checkout, path)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if text, ok := textOf(call); ok {
						text.File, text.Line = name, files.Position(call.Pos()).Line
						texts = append(texts, text)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return texts, nil
}

// maker says where among a function's arguments the text of the error is that it
// makes, and what it puts behind it.
type maker struct {
	at   int
	ends string
}

var makers = map[string]maker{
	"fmt.Errorf": {}, "errors.New": {}, // the language's own
	"invalidf": {}, "Invalidf": {}, "Changedf": {}, "foreignf": {}, "usagef": {}, "wrongUse": {at: 1}, "refuse": {at: 1}, // cmd, chain, fs
	"corrupt": {0, "ErrCorrupt"}, "unsupported": {0, "ErrUnsupported"}, // overlay
}

// textOf is the text of the error that a call makes.
func textOf(call *ast.CallExpr) (Text, bool) {
	m, ok := makers[nameOf(call.Fun)]
	if !ok || len(call.Args) <= m.at {
		return Text{}, false
	}
	argument, rest := call.Args[m.at], call.Args[m.at+1:]
	if inner, ok := argument.(*ast.CallExpr); ok && nameOf(inner.Fun) == "fmt.Sprintf" {
		argument, rest = inner.Args[0], inner.Args[1:]
	}
	format, ok := literal(argument)
	if !ok {
		return Text{}, false
	}
	text := Text{Text: normal(format), Ends: m.ends}
	if strings.HasSuffix(format, "%w") && len(rest) > 0 {
		text.Ends = "err"
		name := nameOf(rest[len(rest)-1])
		if name = name[strings.LastIndexByte(name, '.')+1:]; strings.HasPrefix(name, "Err") {
			text.Ends = name
		}
	}
	return text, text.Text != ""
}

// nameOf is the name of a function or a variable: "f", "fmt.Errorf", and of a
// method only its own.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok && slices.Contains([]string{"fmt", "errors", "chain", "overlay"}, x.Name) {
			return x.Name + "." + e.Sel.Name
		}
		return e.Sel.Name
	}
	return ""
}

// literal is the value of a string literal, also of one in pieces.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		value, err := strconv.Unquote(e.Value)
		return value, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, okA := literal(e.X)
		b, okB := literal(e.Y)
		return a + b, okA && okB
	}
	return "", false
}

var verb = regexp.MustCompile(`%[-+# 0]*[0-9.*]*[a-zA-Z]`)

// normal puts "…" for what a format leaves open, and drops what stands before or
// after a text when that is all open: other errors' words.
func normal(format string) string {
	const percent = "\x00"
	text := verb.ReplaceAllString(strings.ReplaceAll(format, "%%", percent), "…")
	text = strings.ReplaceAll(text, percent, "%")
	for {
		cut := strings.TrimSuffix(strings.TrimPrefix(text, "…: "), ": …")
		if cut == text {
			break
		}
		text = cut
	}
	for strings.Contains(text, "……") {
		text = strings.ReplaceAll(text, "……", "…")
	}
	if !strings.ContainsFunc(text, unicode.IsLetter) {
		return "" // it has no words of its own
	}
	return text
}
