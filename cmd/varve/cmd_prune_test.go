package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"varve/chain"
	"varve/cmd/varve/internal/client"
	"varve/cmd/varve/internal/where"
)

// layersAre is a disk of which only the layers are known.
type layersAre struct {
	client.Disk
	list []chain.LayerStatus
}

func (d layersAre) Layers() ([]chain.LayerStatus, error) { return d.list, nil }

// A prune forgets no other leaf than the one that had been set aside when it looked.
func TestPruneForgetsTheLeafThatItHasSeen(t *testing.T) {
	plan := prunePlan{forgetAside: "000003"}
	for id, refuse := range map[string]bool{"000003": false, "000005": true} {
		err := plan.checkAside(layersAre{list: []chain.LayerStatus{{ID: id, SetAside: true}}})
		if (err != nil) != refuse {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// An interrupt that comes before the delete has begun leaves everything as it is.
func TestInterruptBeforeAJob(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := hostDir(t)
	must(t, dir, "create", "vm.varve", "--size", "4M")
	must(t, dir, "snapshot", "vm.varve", "one")
	found, err := where.Find(dir + "/vm.varve")
	if err != nil {
		t.Fatal(err)
	}
	cmd := &cobra.Command{Use: "prune"}
	cmd.SetErr(io.Discard)
	begin := func(client.Disk) (client.Job, error) {
		t.Error("it was begun")
		return client.Job{}, nil
	}
	if err := followJob(ctx, cmd, found, begin, false, rateFlag{}); !errors.Is(err, errInterrupted) {
		t.Error(err)
	}
}

// A prune is carried out on the snapshots that it has looked at, and on no others of their
// names; what happens to those that are kept does not matter.
func TestPruneOfAChangedDisk(t *testing.T) {
	at := time.Date(2026, 11, 22, 18, 30, 0, 0, time.UTC)
	plan := prunePlan{snapshots: []pruneDecision{{Name: "new", Time: at, Keep: []string{"last"}}, {Name: "old", Time: at.Local()}}}
	if gone := plan.gone(); !slices.Equal(gone, []string{"old"}) {
		t.Errorf("%v go", gone)
	}
	for what, c := range map[string]struct {
		layers []chain.LayerStatus
		refuse bool
	}{
		"as it was":      {[]chain.LayerStatus{{Name: "old", Frozen: at}, {Name: "new", Frozen: at}}, false},
		"a kept one":     {[]chain.LayerStatus{{Name: "old", Frozen: at}}, false},
		"a renamed one":  {[]chain.LayerStatus{{Name: "older", Frozen: at}, {Name: "new", Frozen: at}}, true},
		"another one":    {[]chain.LayerStatus{{Name: "old", Frozen: at.Add(time.Second)}, {Name: "new", Frozen: at}}, true},
		"one that went":  {[]chain.LayerStatus{{Name: "new", Frozen: at}}, true},
		"an unnamed one": {[]chain.LayerStatus{{Frozen: at}, {Name: "new", Frozen: at}}, true},
	} {
		err := plan.check(layersAre{list: c.layers})
		if (err != nil) != c.refuse || err != nil && !strings.Contains(err.Error(), "snapshot old was changed after the prune had looked at it; nothing was deleted, prune again") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
