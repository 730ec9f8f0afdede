package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"varve/fs"
	"varve/integration/turn"
)

// manPages writes the manual and gives the directory.
func manPages(t *testing.T) string {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", "1764000000")
	dir := t.TempDir()
	if code, out, words := varve("man", dir); code != exitDone || out+words != "" {
		t.Fatalf("varve man: code %d, %q, %q", code, out, words)
	}
	return dir
}

// Each command has a page, with its flags on it.
func TestManPages(t *testing.T) {
	dir := manPages(t)
	root := newRootCommand()
	for _, c := range root.Commands() {
		if !c.IsAvailableCommand() || c.Name() == "help" {
			continue
		}
		path := filepath.Join(dir, "man1", "varve-"+c.Name()+".1")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		_, help, _ := varve(c.Name(), "--help")
		for _, flag := range regexp.MustCompile(`(?m)^ +(?:-[a-z], )?(--[a-z-]+)`).FindAllStringSubmatch(help, -1) {
			if flag[1] != "--help" && !strings.Contains(string(text), strings.ReplaceAll(flag[1], "-", `\-`)) {
				t.Errorf("%s lacks %s", path, flag[1])
			}
		}
	}
	if pages, _ := filepath.Glob(dir + "/man1/*"); len(pages) < 18 {
		t.Errorf("only %d pages", len(pages))
	}
	files, err := os.ReadFile(dir + "/man5/varve.5")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs.ControlFiles() {
		if !strings.Contains(string(files), ".B control/"+f.Name+"\n") {
			t.Errorf("varve(5) lacks control/%s", f.Name)
		}
	}
}

// What the manual's tools think of the pages: no warning, and names that whatis
// and apropos find. That is what lintian asks of a package.
func TestManPagesAreInOrder(t *testing.T) {
	dir := manPages(t)
	pages, err := filepath.Glob(dir + "/man?/*")
	if err != nil {
		t.Fatal(err)
	}
	const share = 3 // of so many pages one is shown in a turn
	for i, page := range pages {
		name := strings.TrimSuffix(filepath.Base(page), filepath.Ext(page))
		if said := tool(t, dir, "lexgrog", page); !strings.Contains(said, `"`+name+" - ") {
			t.Errorf("lexgrog of %s: %s", page, said)
		}
		if i%share != turn.Of(0, share) && os.Getenv("VARVE_LONG") == "" {
			continue
		}
		text := tool(t, dir, "sh", "-c", "LC_ALL=C.UTF-8 MANROFFSEQ= MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z '"+page+"' 2>&1 >/dev/null")
		if text != "" {
			t.Errorf("man --warnings of %s: %s", page, text)
		}
		shown := tool(t, dir, "sh", "-c", "LC_ALL=C.UTF-8 MANWIDTH=80 man -l '"+page+"' | col -bx")
		for line := range strings.Lines(shown) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s has a line of %d columns: %s", page, n, line)
			}
		}
	}
	if lint := tool(t, dir, "sh", "-c", "mandoc -Tlint -Wwarning man?/* 2>&1"); lint != "" {
		t.Errorf("mandoc: %s", lint)
	}
}

func TestManDate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1764000000")
	if d, err := buildDate(nil); err != nil || d.UTC().Format(time.DateOnly) != "2025-11-24" {
		t.Errorf("%v, %v", d, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if code, _, words := varve("man", t.TempDir()); code != exitFailed || !strings.Contains(words, `SOURCE_DATE_EPOCH is "yesterday"`) {
		t.Errorf("code %d, %q", code, words)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	if code, _, words := varve("man", "/dev/null/x"); code != exitFailed || strings.Count(words, "\n") != 1 {
		t.Errorf("code %d, %q", code, words)
	}
}
