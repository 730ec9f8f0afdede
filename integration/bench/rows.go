package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

const mib = 1 << 20

func isSuite(name string) bool { return name == "quick" || name == "targets" || name == "full" }

// rows are those of the suite, in the order in which they run.
func (b *bench) rows() []row {
	depths := []int{1, 128}
	if b.suite == "full" {
		depths = []int{1, 8, 32, 128}
	}
	return slices.Concat(b.readRows(depths), b.writeRows(depths), b.touchRows(), b.snapshotRows(), b.copyRows(), b.openRows())
}

func chains(k kind, depths []int) []contestant {
	var list []contestant
	for _, d := range depths {
		list = append(list, contestant{kind: k, depth: d})
	}
	return list
}

func written(list []contestant) []contestant {
	list = slices.Clone(list)
	for i := range list {
		list[i].written = list[i].depth > 0
	}
	return list
}

// job is a fio job as a row's measurement: requests a second up to 64 KiB, else
// MB/s.
func job(j fioJob) func(*bench, *server) (sample, error) {
	return func(b *bench, s *server) (sample, error) {
		r, err := b.fio(s.file, j)
		if err != nil {
			return sample{}, err
		}
		return r.sample(j.block >= mib), nil
	}
}

func (r fioResult) sample(bytes bool) sample {
	value := r.iops
	if bytes {
		value = r.bandwidth / 1e6
	}
	return sample{value, map[string]float64{
		"operations": r.operations, "p50 us": r.p50, "p99.9 us": r.p999, "longest us": r.worst,
	}}
}

func (b *bench) readRows(depths []int) []row {
	varve, peers := chains(varveMount, depths), chains(qsd, depths)
	ceiling := []contestant{{kind: loopback}}
	everyone := slices.Concat(varve, peers, ceiling)
	others := []contestant{{kind: rawFile}, {kind: loopDevice}}
	if b.suite == "full" {
		varve = append(varve, contestant{kind: varveMount, depth: 1000})
		everyone = slices.Concat(varve, peers, ceiling, others, chains(nbdfuse, depths))
	}
	layer := []contestant{{kind: varveMount, depth: 1, file: "layers/base.raw"}, {kind: rawFile}}
	rows := []row{
		{name: "read-4k-q1", unit: "/s", contestants: everyone, do: job(fioJob{rw: "randread", block: 4096, depth: 1})},
		{name: "read-4k-q32", unit: "/s", contestants: everyone, do: job(fioJob{rw: "randread", block: 4096, depth: 32})},
		{name: "read-1m", unit: "MB/s", contestants: everyone, do: job(fioJob{rw: "read", block: mib, depth: 4})},
		{name: "base-read-4k-q32", unit: "/s", contestants: layer, do: job(fioJob{rw: "randread", block: 4096, depth: 32})},
		{name: "base-read-buffered", unit: "MB/s", contestants: layer, do: job(fioJob{rw: "read", block: mib, depth: 1, buffered: true})},
	}
	if b.suite == "quick" {
		return rows[:3]
	}
	for _, depth := range []int{1, 128} {
		name := fmt.Sprintf("read-4k-q32-beyond-cache-depth%d", depth)
		rows = append(rows, row{name: name, unit: "/s", contestants: []contestant{
			{kind: varveMount, depth: depth}, {kind: varveMount, depth: depth, flags: b.smallCache(depth)}},
			do: job(fioJob{rw: "randread", block: 4096, depth: 32})})
	}
	if b.suite != "full" {
		return rows
	}
	for _, j := range []struct {
		name  string
		block int64
	}{{"512", 512}, {"64k", 64 << 10}} {
		rows = append(rows,
			row{name: "read-" + j.name + "-q1", unit: "/s", contestants: everyone, do: job(fioJob{rw: "randread", block: j.block, depth: 1})},
			row{name: "read-" + j.name + "-q32", unit: "/s", contestants: everyone, do: job(fioJob{rw: "randread", block: j.block, depth: 32})})
	}
	return append(rows,
		row{name: "read-buffered", unit: "MB/s", contestants: everyone, do: job(fioJob{rw: "read", block: mib, depth: 1, buffered: true})},
		row{name: "read-4k-q1-cold", unit: "/s", contestants: everyone, before: cold, do: job(fioJob{rw: "randread", block: 4096, depth: 1})},
		row{name: "read-4k-q32-cold", unit: "/s", contestants: everyone, before: cold, do: job(fioJob{rw: "randread", block: 4096, depth: 32})},
		row{name: "read-1m-cold", unit: "MB/s", contestants: everyone, before: cold,
			do: job(fioJob{rw: "read", block: mib, depth: 4, bytes: b.size()})})
}

// smallCache is a limit of an eighth of what varve keeps of the whole disk, or a
// little more: some 16 bytes for each run of clusters in one file, and 200 for each
// 16 MiB.
func (b *bench) smallCache(depth int) string {
	all := b.size() / (16 * mib) * 200
	if depth > 1 {
		// In most places the cluster beside it is in another file.
		all += b.size() / qemuCluster * 16
	}
	return fmt.Sprintf("--cache=%d", all/8)
}

func cold(b *bench, _ *server) error { return b.dropCaches() }

func (b *bench) writeRows(depths []int) []row {
	list := slices.Concat(chains(varveMount, depths), chains(qsd, depths[:1]))
	if b.suite == "full" {
		list = slices.Concat(chains(varveMount, depths), chains(qsd, depths))
		list = append(list, contestant{kind: rawFile}, contestant{kind: loopDevice}, contestant{kind: nbdfuse, depth: 1})
	}
	list = written(append(list, contestant{kind: loopback}))
	rows := []row{
		{name: "write-4k-q1", unit: "/s", contestants: list, before: settle, do: job(fioJob{rw: "randwrite", block: 4096, depth: 1})},
		{name: "write-4k-q32", unit: "/s", contestants: list, before: settle, do: job(fioJob{rw: "randwrite", block: 4096, depth: 32})},
		{name: "write-1m", unit: "MB/s", contestants: list, before: settle, do: job(fioJob{rw: "write", block: mib, depth: 4})},
		{name: "write-4k-fsync", unit: "/s", contestants: list, before: settle, do: job(fioJob{rw: "randwrite", block: 4096, depth: 1, fsync: true})},
	}
	if b.suite != "full" {
		return rows
	}
	for _, j := range []struct {
		name  string
		block int64
	}{{"512", 512}, {"64k", 64 << 10}} {
		rows = append(rows,
			row{name: "write-" + j.name + "-q1", unit: "/s", contestants: list, before: settle, do: job(fioJob{rw: "randwrite", block: j.block, depth: 1})},
			row{name: "write-" + j.name + "-q32", unit: "/s", contestants: list, before: settle, do: job(fioJob{rw: "randwrite", block: j.block, depth: 32})})
	}
	// Last: what was discarded is written for the first time again.
	return append(rows, row{name: "discard-64k-q1", unit: "/s", contestants: list, before: settle,
		do: job(fioJob{rw: "randtrim", block: 64 << 10, depth: 1})})
}

// settle writes back what the turn before left dirty: otherwise one contestant
// pays for another's writes.
func settle(b *bench, s *server) error {
	_, err := b.command("", "sync", "-f", b.dir)
	return err
}

// touchRows are writes to places that hold nothing of the leaf yet, over a full
// base. Each turn has a new leaf or overlay.
func (b *bench) touchRows() []row {
	list := []contestant{
		{kind: varveMount, depth: 1, fresh: true}, {kind: qsd, depth: 1, fresh: true}, {kind: qsdExtL2, depth: 1, fresh: true},
	}
	touch := func(depth int, limit int64) func(b *bench, s *server) (sample, error) {
		return func(b *bench, s *server) (sample, error) {
			order := rand.New(rand.NewPCG(1, 1)).Perm(int(b.size() / qemuCluster))
			log, err := b.touches(s.file, limit, order)
			if err != nil {
				return sample{}, err
			}
			return job(fioJob{log: log, depth: depth})(b, s)
		}
	}
	rows := []row{
		{name: "touch-4k-q1", unit: "/s", contestants: list, before: settle, do: touch(1, 4096)},
		{name: "touch-4k-q32", unit: "/s", contestants: list, before: settle, do: touch(32, 16384)},
		{name: "touch-4k-fsync", unit: "/s", contestants: list, before: settle,
			do: job(fioJob{rw: "randwrite", block: 4096, depth: 1, fsync: true})},
	}
	if b.suite == "full" {
		deep := slices.Clone(list)
		for i := range deep {
			deep[i].depth = 32
		}
		rows = append(rows, row{name: "touch-4k-q32-depth32", unit: "/s", contestants: deep, before: settle, do: touch(32, 16384)})
	}
	return rows
}
