package chain

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"varve/chain/manifest"
	"varve/overlay/check"
)

// byMount is the way out of what the next mount deals with by itself.
const byMount = "the next mount, or a check with --repair, puts it in order"

// checkDirectory looks for files that belong to no layer, and for the mark of a
// disk that was not unmounted in order.
func (c *checker) checkDirectory() error {
	m := c.manifest
	temp := filepath.Join(c.dir, manifest.TempName)
	if _, err := c.fs.Stat(temp); err == nil {
		c.notef("", temp, byMount, true, "a crash left a chain.json that was not finished")
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	layers := filepath.Join(c.dir, manifest.LayersDir)
	files, err := c.fs.ReadDir(layers)
	if errors.Is(err, os.ErrNotExist) {
		c.blockf("", layers, "put it back from a backup", "the directory of the layers is not there")
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range files {
		file := manifest.LayersDir + "/" + name
		number, ok := manifest.LayerFileNumber(file)
		owned := slices.ContainsFunc(m.Layers, func(l *manifest.Layer) bool { return !l.Foreign && l.File == file })
		path := filepath.Join(layers, name)
		switch {
		case owned:
		case !ok:
			c.notef("", path, "move it elsewhere", false, "it is no file of varve's")
		case slices.Contains(m.Removing, file):
			c.notef("", path, byMount, true, "the file of a layer that is gone was not removed yet")
		case number >= m.Next:
			switch data, err := check.HasData(c.fs, path); {
			case err != nil:
				c.blockf("", path, "make it readable, or move it elsewhere", "chain.json does not know it, and it cannot be read: %v", err)
			case data:
				c.blockf("", path, unknownWayOut, "it holds data, and chain.json, which is older, does not know it")
			default:
				c.notef("", path, byMount, true, "a crash left the file of a layer that never came to be")
			}
		default:
			c.notef("", path, "if nothing in it is missed, remove it", false, "no layer owns this file; varve leaves it alone")
		}
	}
	return nil
}

// checkJob looks whether the recorded job has something to do.
func (c *checker) checkJob() {
	m := c.manifest
	j := m.Job
	if j == nil {
		return
	}
	path := filepath.Join(c.dir, manifest.FileName)
	if !m.JobHasWork() {
		c.notef(j.Layer, path, byMount, true, "job %s (%s of %s) has nothing to do", j.ID, j.Kind, m.Layer(j.Layer).Label())
		return
	}
	c.notef(j.Layer, path, "it goes on at the next mount", false, "job %s (%s of %s) is not finished", j.ID, j.Kind, m.Layer(j.Layer).Label())
}
