package show

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"varve/chain"
)

func exampleStatus() chain.Status {
	at := time.Date(2026, 11, 22, 18, 30, 0, 0, time.Local)
	id := func(s string) *string { return &s }
	return chain.Status{
		Version: 1, Disk: "/srv/vm1.varve", Size: 20 << 30, Leaf: "000005",
		Layers: []chain.LayerStatus{
			{ID: "000001", Name: "base", State: "base", Foreign: true, Format: "raw", File: "/srv/ubuntu.raw", Created: at, OwnBytes: 4 << 30, Counted: true, HostBytes: 4<<30 + 1<<28},
			{ID: "000002", Name: "before-upgrade", State: "frozen", Parent: id("000001"), Created: at, Frozen: at.Add(time.Hour), OwnBytes: 300 << 20, Counted: true, HostBytes: 301 << 20},
			{ID: "000003", State: "unnamed", Parent: id("000002"), Created: at, OwnBytes: 65536, Counted: true, HostBytes: 1 << 20},
			{ID: "000004", Name: strings.Repeat("long-", 20) + "end", State: "frozen", Parent: id("000002"), Created: at, OwnBytes: 1023 << 30, Counted: true, HostBytes: 999},
			{ID: "000005", State: "leaf", Parent: id("000004"), Created: at, Counted: true},
		},
		Open: []chain.OpenStatus{{File: "disk.raw", PID: 4242, Command: "qemu-system-x86", Write: true}, {File: "layers/base.raw", Command: "\x1b[2J"}},
		Job:  &chain.JobStatus{ID: "3", Kind: "flatten", Layer: "000002", State: "running", DoneBytes: 1 << 30, TotalBytes: 4 << 30},
	}
}

func TestTable(t *testing.T) {
	const want = `disk  /srv/vm1.varve
size  20 GiB (21474836480 bytes)
base  /srv/ubuntu.raw (raw, never written)
job   3: flatten of before-upgrade, running, 25 % (1 GiB of 4 GiB)

LAYER                                   OWN   ON HOST    FREES  SINCE
■ base                                4 GiB  4.25 GiB        -  2026-11-22 18:30
● before-upgrade                    300 MiB   301 MiB        ?  2026-11-22 19:30
│   being flattened, 25 %
├─○ (000003)                         64 KiB     1 MiB  1.5 MiB  2026-11-22 18:30
│     the leaf that the last revert set aside
● long-long-long-…g-long-long-end  1023 GiB     999 B        ?  2026-11-22 18:30
◆ leaf                                  0 B       0 B        -  2026-11-22 18:30

OPEN              PID  COMMAND          TO
disk.raw         4242  qemu-system-x86  write
layers/base.raw     ?  ?[2J             read
`
	st := exampleStatus()
	frees := int64(3 << 19)
	st.Layers[2].SetAside, st.Layers[2].Frees = true, &frees
	var got bytes.Buffer
	if err := Table(&got, st, TreeOptions{}); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	for line := range strings.Lines(got.String()) {
		if n := utf8.RuneCountInString(line) - 1; n > tableWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// A long line about a job goes on in the next one.
func TestTableWithALongJob(t *testing.T) {
	st := exampleStatus()
	left := int64(7500)
	st.Job.Rate, st.Job.RateLimit, st.Job.SecondsLeft = 20<<20, 8<<20, &left
	const want = `
job   3: flatten of before-upgrade, running, 25 % (1 GiB of 4 GiB),
      20 MiB/s (limit 8 MiB/s), 2 h 10 min left

`
	var got bytes.Buffer
	if err := Table(&got, st, TreeOptions{}); err != nil || !strings.Contains(got.String(), want) {
		t.Errorf("%v, got\n%s\nwant%s", err, got.String(), want)
	}
}

func TestLayerTable(t *testing.T) {
	const want = `LAYER                 ON                         OWN   ON HOST  SINCE
base                  -                        4 GiB  4.25 GiB  2026-11-22 18:30
before-upgrade        base                   300 MiB   301 MiB  2026-11-22 19:30
(000003)              before-upgrade          64 KiB     1 MiB  2026-11-22 18:30
long-long-…-long-end  before-upgrade        1023 GiB     999 B  2026-11-22 18:30
leaf                  long-long-…-long-end       0 B       0 B  2026-11-22 18:30
`
	var got bytes.Buffer
	if err := LayerTable(&got, exampleStatus()); err != nil || got.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got.String(), want)
	}
}

func TestJobNeverPassesItsEnd(t *testing.T) {
	line := jobLine(chain.Status{}, chain.JobStatus{ID: "1", Kind: "delete", Layer: "000009", State: "failed", DoneBytes: 9, TotalBytes: 3, Error: "a\nb"})
	if line != "1: delete of (000009), failed, 100 % (3 B of 3 B): a b" {
		t.Error(line)
	}
}

func TestJSONHasListsNotNull(t *testing.T) {
	var got bytes.Buffer
	if err := JSON(&got, chain.Status{Version: 1, Layers: []chain.LayerStatus{{ID: "000001", File: "/a&b"}}}); err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(got.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	layer := doc["layers"].([]any)[0].(map[string]any)
	if layer["children"] == nil || doc["open"] == nil || layer["file"] != "/a&b" || layer["parent"] != nil || !strings.Contains(got.String(), "a&b") {
		t.Error(got.String())
	}
}
