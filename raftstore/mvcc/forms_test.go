// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// At a level, nothing is written in a form of a later one. The later forms are those of this test alone.
func TestFormsOfLaterLevels(t *testing.T) {
	defer func(was any) { Since = was.(struct{ Formats, Kinds, Flags, Records map[byte]int }) }(Since)
	later := map[byte]int{}
	put := &pb.PutRequest{Key: []byte("k"), Value: []byte(strings.Repeat("v", 2*worthPacking))}
	plain, fenced := Command{Request: put}, Command{Request: put, Fence: 7}
	for _, c := range []struct {
		name   string
		forms  *map[byte]int
		form   byte
		writes func(level int) error // fails if it cannot be written, or was not written in the form
	}{
		{"kind", &Since.Kinds, kindPut, func(level int) error { return testenv.Err(AppendCommand(NewEntry(nil), plain, level)) }},
		{"flag", &Since.Flags, flagFence, func(level int) error { return testenv.Err(AppendCommand(NewEntry(nil), fenced, level)) }},
		{"format", &Since.Formats, packedFormat, func(level int) error {
			entry := testenv.Must(AppendCommand(NewEntry(nil), plain, level))(t)
			return ifPlain(Plain(Pack(entry, level)))
		}},
		{"record", &Since.Records, recordHistory, func(level int) error {
			return testenv.Err(stateOf(t, put, level).Snapshot().WriteTo(&bytes.Buffer{}))
		}},
		{"packed snapshot", &Since.Formats, packedFormat, func(level int) error {
			var b bytes.Buffer
			testenv.NoError(t, stateOf(t, put, level).Snapshot().WritePacked(&b))
			testenv.Must(Restore(bytes.NewReader(b.Bytes())))(t)
			return ifPlain(!strings.HasPrefix(b.String(), streamMagic))
		}},
	} {
		testenv.NoError(t, c.writes(1), "%s: before there is a later level", c.name)
		*c.forms = map[byte]int{c.form: 2}
		testenv.Fails(t, c.writes(1), "%s: a form of level 2 was written at level 1", c.name)
		testenv.NoError(t, c.writes(2), "%s: at level 2", c.name)
		*c.forms = later
	}
}

func ifPlain(plain bool) error {
	if plain {
		return ErrFormat
	}
	return nil
}

// stateOf returns the view of a cluster that has a level.
func stateOf(t *testing.T, put *pb.PutRequest, at int) *View {
	s := New()
	commands := []Command{{Request: put}}
	if at > level.First {
		commands = append(commands, Command{Request: &pb.PutRequest{Key: []byte(level.Key), Value: []byte{'0' + byte(at)}}})
	}
	s.ApplyEntry(1, 1, commands)
	view := s.Freeze()
	testenv.Equal(t, view.Level(), at, "the level is")
	return view
}
