package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"time"
)

// The objects of chain.json as they are written. A field's name is its json
// tag, exactly; encoding/json alone would take "LEAF" for "leaf" and lose what
// it does not know.

type manifestFields struct {
	Version   int        `json:"version"`
	Next      int        `json:"next"`
	Leaf      string     `json:"leaf"`
	SetAside  *string    `json:"set_aside"`
	BlankSize int64      `json:"blank_size"`
	Base      *string    `json:"base"`
	Modified  *time.Time `json:"modified"`
	Layers    []*Layer   `json:"layers"`
	Job       *Job       `json:"job"`
	NextJob   int        `json:"next_job"`
	Removing  []string   `json:"removing"`
	Clones    []*Clone   `json:"clones"`

	MountOptions *string `json:"mount_options"`
	Mountpoint   *string `json:"mountpoint"`
}

type layerFields struct {
	ID          string       `json:"id"`
	Name        string       `json:"name"`
	Parent      *string      `json:"parent"`
	Format      string       `json:"format"`
	File        string       `json:"file"`
	Foreign     bool         `json:"foreign"`
	Created     *time.Time   `json:"created"`
	Frozen      *time.Time   `json:"frozen"`
	Size        int64        `json:"size"`
	Held        bool         `json:"held"`
	Writing     bool         `json:"writing"`
	Fingerprint *Fingerprint `json:"fingerprint"`
	OwnBytes    *int64       `json:"own_bytes"`
	ViewBytes   *int64       `json:"view_bytes"`
	HiddenBytes *int64       `json:"hidden_bytes"`
	CountedOf   *string      `json:"counted_of"`
}

type jobFields struct {
	ID        string    `json:"id"`
	Kind      JobKind   `json:"kind"`
	Layer     string    `json:"layer"`
	Into      string    `json:"into"`
	Direction Direction `json:"direction"`
}

type cloneFields struct {
	Layer string `json:"layer"`
	Disk  string `json:"disk"`
}

type fingerprintFields struct {
	Size    int64  `json:"size"`
	ModTime int64  `json:"mtime_ns"`
	Digest  string `json:"digest"`
	Inode   uint64 `json:"inode"`
	Device  uint64 `json:"device"`
	Unread  int64  `json:"unread_at"`
}

// MarshalJSON implements json.Marshaler: the fields in their order, then the unknown ones.
func (m *Manifest) MarshalJSON() ([]byte, error) {
	layers := m.Layers
	if layers == nil {
		layers = []*Layer{}
	}
	return encodeObject(&manifestFields{
		Version: m.Version, Next: m.Next, Leaf: m.Leaf, SetAside: orNull(m.SetAside),
		BlankSize: m.BlankSize, Base: orNull(m.Base), Modified: timeOrNull(m.Modified),
		Layers: layers, Job: m.Job, NextJob: m.NextJob, Removing: append([]string{}, m.Removing...),
		Clones: append([]*Clone{}, m.Clones...), MountOptions: m.MountOptions,
		Mountpoint: orNull(m.Mountpoint),
	}, m.extra)
}

// UnmarshalJSON implements json.Unmarshaler. It keeps the fields that it does not know.
func (m *Manifest) UnmarshalJSON(data []byte) error {
	var f manifestFields
	extra, err := decodeObject(data, &f)
	if err != nil {
		return err
	}
	modified, err := orZero(f.Modified)
	if err != nil {
		return err
	}
	if len(f.Removing) == 0 {
		f.Removing = nil
	}
	if len(f.Clones) == 0 {
		f.Clones = nil
	}
	*m = Manifest{
		Version: f.Version, Next: f.Next, Leaf: f.Leaf, SetAside: orEmpty(f.SetAside),
		BlankSize: f.BlankSize, Base: orEmpty(f.Base), Modified: modified,
		Layers: f.Layers, Job: f.Job, NextJob: f.NextJob, Removing: f.Removing, Clones: f.Clones,
		MountOptions: f.MountOptions, Mountpoint: orEmpty(f.Mountpoint), extra: extra,
	}
	return nil
}

// MarshalJSON implements json.Marshaler: the fields in their order, then the unknown ones.
func (l *Layer) MarshalJSON() ([]byte, error) {
	return encodeObject(&layerFields{
		ID: l.ID, Name: l.Name, Parent: orNull(l.Parent), Format: l.Format, File: l.File,
		Foreign: l.Foreign, Created: timeOrNull(l.Created), Frozen: timeOrNull(l.Frozen),
		Size: l.Size, Held: l.Held, Writing: l.Writing, Fingerprint: l.Fingerprint,
		OwnBytes: l.Counts.own(), ViewBytes: l.Counts.view(), HiddenBytes: l.Counts.hides(), CountedOf: l.Counts.of(),
	}, l.extra)
}

// UnmarshalJSON implements json.Unmarshaler. It keeps the fields that it does not know.
func (l *Layer) UnmarshalJSON(data []byte) error {
	var f layerFields
	extra, err := decodeObject(data, &f)
	if err != nil {
		return err
	}
	created, err := orZero(f.Created)
	if err != nil {
		return err
	}
	frozen, err := orZero(f.Frozen)
	if err != nil {
		return err
	}
	*l = Layer{
		ID: f.ID, Name: f.Name, Parent: orEmpty(f.Parent), Format: f.Format, File: f.File,
		Foreign: f.Foreign, Created: created, Frozen: frozen,
		Size: f.Size, Held: f.Held, Writing: f.Writing, Fingerprint: f.Fingerprint,
		Counts: countsFrom(f.OwnBytes, f.ViewBytes, f.HiddenBytes, f.CountedOf), extra: extra,
	}
	return nil
}

// MarshalJSON implements json.Marshaler: the fields in their order, then the unknown ones.
func (j *Job) MarshalJSON() ([]byte, error) {
	return encodeObject(&jobFields{
		ID: j.ID, Kind: j.Kind, Layer: j.Layer, Into: j.Into, Direction: j.Direction,
	}, j.extra)
}

// UnmarshalJSON implements json.Unmarshaler. It keeps the fields that it does not know.
func (j *Job) UnmarshalJSON(data []byte) error {
	var f jobFields
	extra, err := decodeObject(data, &f)
	if err != nil {
		return err
	}
	*j = Job{
		ID: f.ID, Kind: f.Kind, Layer: f.Layer, Into: f.Into, Direction: f.Direction, extra: extra,
	}
	return nil
}

// MarshalJSON implements json.Marshaler: the fields in their order, then the unknown ones.
func (c *Clone) MarshalJSON() ([]byte, error) {
	return encodeObject(&cloneFields{Layer: c.Layer, Disk: c.Disk}, c.extra)
}

// UnmarshalJSON implements json.Unmarshaler. It keeps the fields that it does not know.
func (c *Clone) UnmarshalJSON(data []byte) error {
	var f cloneFields
	extra, err := decodeObject(data, &f)
	if err != nil {
		return err
	}
	*c = Clone{Layer: f.Layer, Disk: f.Disk, extra: extra}
	return nil
}

// MarshalJSON implements json.Marshaler: the fields in their order, then the unknown ones.
func (f *Fingerprint) MarshalJSON() ([]byte, error) {
	return encodeObject(&fingerprintFields{
		Size: f.Size, ModTime: f.ModTime, Digest: f.Digest, Inode: f.Inode, Device: f.Device, Unread: f.Unread,
	}, f.extra)
}

// UnmarshalJSON implements json.Unmarshaler. It keeps the fields that it does not know.
func (f *Fingerprint) UnmarshalJSON(data []byte) error {
	var known fingerprintFields
	extra, err := decodeObject(data, &known)
	if err != nil {
		return err
	}
	*f = Fingerprint{
		Size: known.Size, ModTime: known.ModTime, Digest: known.Digest,
		Inode: known.Inode, Device: known.Device, Unread: known.Unread, extra: extra,
	}
	return nil
}

// decodeObject sets the fields of *known, a struct whose fields all have json
// tags, from a JSON object, and gives back the others.
func decodeObject(data []byte, known any) (extraFields, error) {
	var fields extraFields
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	if fields == nil {
		return nil, errors.New("null where an object should stand")
	}
	v := reflect.ValueOf(known).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("json")
		value, ok := fields[name]
		if !ok {
			continue
		}
		delete(fields, name)
		if err := json.Unmarshal(value, v.Field(i).Addr().Interface()); err != nil {
			return nil, fmt.Errorf("field %q: %w", name, err)
		}
	}
	if len(fields) == 0 {
		return nil, nil
	}
	return fields, nil
}

// encodeObject writes the fields of *known in their order, then the extra ones
// by name.
func encodeObject(known any, extra extraFields) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false) // the file is read by people
	field := func(name string, value any) error {
		if out.Len() == 0 {
			out.WriteByte('{')
		} else {
			out.WriteByte(',')
		}
		if err := encoder.Encode(name); err != nil {
			return err
		}
		out.WriteByte(':')
		if err := encoder.Encode(value); err != nil {
			return fmt.Errorf("field %q: %w", name, err)
		}
		return nil
	}
	v := reflect.ValueOf(known).Elem()
	for i := range v.NumField() {
		if err := field(v.Type().Field(i).Tag.Get("json"), v.Field(i).Interface()); err != nil {
			return nil, err
		}
	}
	names := make([]string, 0, len(extra))
	for name := range extra {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := field(name, extra[name]); err != nil {
			return nil, err
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// orZero is the time in UTC. A time zone can carry it past the years that can
// be written again.
func orZero(t *time.Time) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	u := t.UTC()
	if u.Year() < 0 || u.Year() > 9999 {
		return time.Time{}, fmt.Errorf("time %v is out of range", t)
	}
	return u, nil
}
