package main

import (
	"fmt"
	"slices"
	"strconv"
)

// target is a ratio of two contestants' medians in one row.
type target struct {
	What   string  `json:"what"`
	row    string  // name of the row
	of, to string  // contestants, as the tables name them
	Least  float64 `json:"least"`
	// judge is for targets that are no ratio of two medians.
	judge func(*rowResult) (value float64, ok bool)
	most  bool // Least is the most that is allowed
	unit  string
	// unless gives another reason to call it reached.
	unless func(*rowResult) bool
}

// verdict is a target with what was measured.
type verdict struct {
	target
	Row     string  `json:"row"`
	Value   float64 `json:"value"`
	Reached bool    `json:"reached"`
	Missing bool    `json:"missing,omitempty"` // a contestant failed
}

const (
	varve1, varve128 = "varve, depth 1", "varve, depth 128"
	qsd1, qsd128     = "qemu-storage-daemon, depth 1", "qemu-storage-daemon, depth 128"
	qsdExt1          = "qemu-storage-daemon, extended L2, depth 1"
)

func targets() []target {
	list := []target{
		{What: "4 KiB random read, queue 32: against the loopback ceiling", row: "read-4k-q32", of: varve1, to: string(loopback), Least: 0.9},
		{What: "4 KiB random read, queue 32: depth 1 against qemu-storage-daemon", row: "read-4k-q32", of: varve1, to: qsd1, Least: 2.5},
		{What: "4 KiB random read, queue 32: depth 128 against qemu-storage-daemon", row: "read-4k-q32", of: varve128, to: qsd128, Least: 15},
		{What: "4 KiB random read, queue 1: depth 1 against qemu-storage-daemon", row: "read-4k-q1", of: varve1, to: qsd1, Least: 1.4},
		{What: "4 KiB random read, queue 1: depth 128 against qemu-storage-daemon", row: "read-4k-q1", of: varve128, to: qsd128, Least: 4},
		{What: "4 KiB random write in place, queue 32: against qemu-storage-daemon", row: "write-4k-q32", of: varve1, to: qsd1, Least: 3},
	}
	for _, q := range []string{"q1", "q32"} {
		list = append(list,
			target{What: "4 KiB first-touch write, " + q + ": against QEMU's defaults", row: "touch-4k-" + q, of: varve1, to: qsd1, Least: 4},
			target{What: "4 KiB first-touch write, " + q + ": against extended L2", row: "touch-4k-" + q, of: varve1, to: qsdExt1, Least: 2})
	}
	list = append(list,
		target{What: "4 KiB write and fsync, first touch: against QEMU's defaults", row: "touch-4k-fsync", of: varve1, to: qsd1, Least: 1.3},
		target{What: "4 KiB write and fsync, first touch: against extended L2", row: "touch-4k-fsync", of: varve1, to: qsdExt1, Least: 1.3},
		target{What: "4 KiB write and fsync, in place: against qemu-storage-daemon", row: "write-4k-fsync", of: varve1, to: qsd1, Least: 1.3},
		target{What: "1 MiB sequential read: against the loopback ceiling", row: "read-1m", of: varve1, to: string(loopback), Least: 0.9},
		target{What: "1 MiB sequential write: against the loopback ceiling", row: "write-1m", of: varve1, to: string(loopback), Least: 0.9},
		target{What: "a raw layer, 4 KiB random read, queue 32: against the raw file", row: "base-read-4k-q32", of: "varve, depth 1, layers/base.raw", to: string(rawFile), Least: 0.9},
		target{What: "a raw layer, buffered in order: against the raw file", row: "base-read-buffered", of: "varve, depth 1, layers/base.raw", to: string(rawFile), Least: 0.9},
	)
	for _, row := range []string{"flatten", "delete-up", "delete-down", "export"} {
		list = append(list,
			target{What: row + ": against cp", row: row, of: varve1, to: string(copyPlain), Least: 0.8},
			target{What: row + ": against cp and sync", row: row, of: varve1, to: string(copySynced), Least: 0.8})
	}
	list = append(list, target{What: "export of a sparse 1 TiB disk that is mounted: time against cp --sparse=auto of the view", row: sparseRow,
		Least: 2, most: true,
		judge: func(r *rowResult) (float64, bool) {
			return r.quotient(contestant{kind: sparseExport, depth: 1}.String(), contestant{kind: sparseCopy, depth: 1}.String())
		}})
	for _, row := range []string{"flatten", "delete-up", "delete-down", "export"} {
		// A clone costs the same for any number of bytes; a copy takes four times as
		// long. cp, which clones a whole file in one call, is in the rows without -4x.
		list = append(list, target{What: row + " on xfs: time against that for a quarter of the bytes (or 50 ms more)", row: "xfs-" + row + "-4x",
			Least: 1.5, most: true,
			judge: func(r *rowResult) (float64, bool) { return r.quotient(varve1, varve1+quarterWords) },
			unless: func(r *rowResult) bool {
				all, ok := r.median(varve1)
				quarter, ok2 := r.median(varve1 + quarterWords)
				return ok && ok2 && all-quarter < 0.05
			}})
	}
	for _, row := range []string{"snapshot-rewrite-q32", "snapshot-rewrite-8000", "snapshot-touch-8000"} {
		for _, c := range []string{varve1, varve128} {
			list = append(list,
				target{What: row + ", " + c + ": p99.9 above that without", row: row, Least: 1, most: true, unit: "ms",
					judge: func(r *rowResult) (float64, bool) { return r.median(c) }},
				target{What: row + ", " + c + ": longest write against the longest without", row: row, Least: 1, most: true,
					judge: func(r *rowResult) (float64, bool) {
						with, ok := r.medianOf(c, "longest ms with")
						without, ok2 := r.medianOf(c, "longest ms without")
						return with / without, ok && ok2 && without > 0
					}})
		}
	}
	for _, depth := range []int{1, 128} {
		c := contestant{kind: varveBig, depth: depth}.String()
		list = append(list,
			target{What: "snapshot-1t-8000, depth " + strconv.Itoa(depth) + ": p99.9 above that without", row: "snapshot-1t-8000", Least: 1, most: true, unit: "ms",
				judge: func(r *rowResult) (float64, bool) { return r.median(c) }},
			target{What: "snapshot-1t-8000, depth " + strconv.Itoa(depth) + ": longest write against the raw file's", row: "snapshot-1t-8000", Least: 1, most: true,
				judge: func(r *rowResult) (float64, bool) {
					with, ok := r.medianOf(c, "longest ms with")
					host, ok2 := r.largestOf(string(rawFile), "longest ms with", "longest ms without")
					return with / host, ok && ok2 && host > 0
				}})
	}
	list = append(list,
		target{What: "ready after mount, 128 adopted layers", row: "open", Least: 100, most: true, unit: "ms",
			judge: func(r *rowResult) (float64, bool) { return r.median("varve mount, depth 128") }},
		target{What: "ready after mount, 128 adopted layers, memory", row: "open", Least: 64, most: true, unit: "MiB",
			judge: func(r *rowResult) (float64, bool) { return r.medianOf("varve mount, depth 128", "resident MiB") }},
		target{What: "ready after mount, 128 layers, 1 TiB", row: "open-1t", Least: 100, most: true, unit: "ms",
			judge: func(r *rowResult) (float64, bool) { return r.median(string(openingBig)) }},
		target{What: "ready after mount, 128 layers, 1 TiB, memory", row: "open-1t", Least: 64, most: true, unit: "MiB",
			judge: func(r *rowResult) (float64, bool) { return r.medianOf(string(openingBig), "resident MiB") }},
		target{What: "ready after mount, the disk given", row: "open-disk", Least: 100, most: true, unit: "ms",
			judge: func(r *rowResult) (float64, bool) { return r.median(string(opening)) }},
		target{What: "ready after mount, the disk given, memory", row: "open-disk", Least: 64, most: true, unit: "MiB",
			judge: func(r *rowResult) (float64, bool) { return r.medianOf(string(opening), "resident MiB") }})
	for _, row := range []string{"read-4k-q1", "read-4k-q32", "read-1m", "write-4k-q1", "write-4k-q32", "write-1m", "write-4k-fsync"} {
		list = append(list, target{What: row + ": depth 128 against depth 1", row: row, of: varve128, to: varve1, Least: 0.95})
	}
	return list
}

// judge compares the rows that were measured with their targets, and gives the
// number of those not reached.
func (r *results) judge() (missed int) {
	for _, t := range targets() {
		i := slices.IndexFunc(r.Rows, func(row *rowResult) bool { return row.Name == t.row })
		if i < 0 {
			continue
		}
		v := verdict{target: t, Row: t.row}
		ok := false
		if t.judge != nil {
			v.Value, ok = t.judge(r.Rows[i])
		} else {
			v.Value, ok = r.Rows[i].ratio(t.of, t.to)
		}
		v.Missing = !ok
		v.Reached = ok && t.holds(v.Value, r.Rows[i])
		if !v.Reached {
			missed++
		}
		r.Targets = append(r.Targets, v)
	}
	return missed
}

func (t target) holds(value float64, r *rowResult) bool {
	if t.most && value <= t.Least || !t.most && value >= t.Least {
		return true
	}
	return t.unless != nil && t.unless(r)
}

// words are the columns of a verdict: target, measured, outcome.
func (v verdict) words() (want, got, outcome string) {
	want, got, outcome = "at least ", fmt.Sprintf("%.2f", v.Value), "reached"
	if v.most {
		want = "at most "
	}
	want += fmt.Sprint(v.Least)
	if v.unit != "" {
		want, got = want+" "+v.unit, got+" "+v.unit
	}
	if v.Missing {
		return want, "none", "NOT MEASURED"
	}
	if !v.Reached {
		outcome = "NOT reached"
	}
	return want, got, outcome
}
