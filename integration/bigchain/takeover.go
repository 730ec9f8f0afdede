package bigchain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// takeOver makes the adopted qcow2 files, bottom first, a disk's own frozen layers:
// it moves them into layers/ and edits chain.json, as far as it has to know it.
func takeOver(dir string, files []string, o Options) error {
	path := filepath.Join(dir, "chain.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var m map[string]any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber() // fingerprints have numbers of 64 bits
	if err := decoder.Decode(&m); err != nil {
		return err
	}
	byFile := map[string]map[string]any{}
	layers, _ := m["layers"].([]any)
	for _, l := range layers {
		if rec, ok := l.(map[string]any); ok {
			byFile[fmt.Sprint(rec["file"])] = rec
		}
	}
	for i, file := range files {
		rec := byFile[file]
		if rec == nil {
			return fmt.Errorf("bigchain: chain.json has no layer %s", file)
		}
		own := filepath.Join("layers", filepath.Base(file))
		rec["file"], rec["foreign"], rec["name"] = own, false, LayerName(i)
		if err := os.Rename(file, filepath.Join(dir, own)); err != nil {
			return err
		}
	}
	if o.Base {
		for file, rec := range byFile {
			if filepath.Base(file) == "base.raw" {
				rec["file"] = dir + ".raw"
			}
		}
	} else {
		m["base"], m["blank_size"] = nil, o.Size
	}
	if text, err = json.MarshalIndent(m, "", "  "); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}
