package show

import (
	"fmt"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf16"

	"varve/overlay/procs"
)

// Printable is a copy of a value, such as a disk's status, in which every text is printable:
// chain.json, and the mount of another user, may have anything in any of them. The values in
// it are structs, slices and pointers of such, and plain ones.
func Printable[T any](v T) T {
	makePrintable(reflect.ValueOf(&v).Elem())
	return v
}

// makePrintable changes what it is given and none of what that refers to.
func makePrintable(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(procs.Printable(strings.ReplaceAll(v.String(), "\n", " ")))
	case reflect.Pointer:
		if !v.IsNil() {
			copied := reflect.New(v.Type().Elem())
			copied.Elem().Set(v.Elem())
			makePrintable(copied.Elem())
			v.Set(copied)
		}
	case reflect.Slice:
		if !v.IsNil() {
			copied := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
			reflect.Copy(copied, v)
			for i := range copied.Len() {
				makePrintable(copied.Index(i))
			}
			v.Set(copied)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				makePrintable(f)
			}
		}
	}
}

// PrintableJSON is a JSON document of the same meaning with nothing in it that a terminal
// would obey: JSON can escape every character of a text.
func PrintableJSON(text []byte) []byte {
	var out strings.Builder
	for _, r := range string(text) {
		switch {
		case r == '\t' || r == '\r': // between two values; in a text they are escaped already
			out.WriteByte(' ')
		case r == '\n' || unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return []byte(out.String())
}
