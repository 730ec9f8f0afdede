package integration

import (
	"regexp"
	"strings"
	"testing"

	"varve/fs"
)

var metricName = regexp.MustCompile(`\bvarve_[a-z_]+[a-z]\b`)

// The reference has every metric with its kind and its words, and no other; the
// rules for alerts name none that is not there. varve_up is the command's own.
func TestReferenceOfMetrics(t *testing.T) {
	reference := readPage(t, "docs/reference.md")
	kinds := map[string]string{"varve_up": "gauge"}
	for _, m := range fs.Metrics() {
		kinds[m.Name] = m.Kind
		row := "| `" + m.Name + "` | " + m.Kind + " | "
		_, rest, ok := strings.Cut(reference, row)
		line, _, _ := strings.Cut(rest, "\n")
		if !ok || !strings.HasSuffix(line, " | "+strings.TrimSuffix(m.Help, ".")+" |") {
			t.Errorf("the reference lacks the row %s… | %s", row, strings.TrimSuffix(m.Help, "."))
		}
	}
	for _, page := range []string{"docs/reference.md", "docs/alerts.yml", "docs/install.md"} {
		found := metricName.FindAllString(readPage(t, page), -1)
		for _, name := range found {
			if kinds[name] != "" {
				continue
			}
			base := name
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, part)
			}
			if kinds[base] != "histogram" {
				t.Errorf("%s names %s, which is no metric", page, name)
			}
		}
		if len(found) < 9 && page != "docs/install.md" {
			t.Errorf("%s names only %d metrics", page, len(found))
		}
	}
	// The figures' file is the packaged one's, or any of that name.
	_, file, _ := strings.Cut(readPage(t, "docs/alerts.yml"), `file=~"`)
	file, _, _ = strings.Cut(file, `"`)
	for name, want := range map[string]bool{"/var/lib/prometheus/node-exporter/varve.prom": true, "varve.prom": true, "/x/other-varve.prom": false, "/x/varve-prom": false} {
		if regexp.MustCompile("^(?:"+file+")$").MatchString(name) != want {
			t.Errorf("%s matches %s: %v", file, name, !want)
		}
	}
	// A label that a rule asks for is one that the reference knows.
	for _, l := range regexp.MustCompile(`\$labels\.([a-z]+)`).FindAllStringSubmatch(readPage(t, "docs/alerts.yml"), -1) {
		if l[1] != "instance" && !strings.Contains(reference, "`"+l[1]+"`") {
			t.Errorf("alerts.yml uses the label %s", l[1])
		}
	}
}
