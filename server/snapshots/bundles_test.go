// SPDX-License-Identifier: Apache-2.0

package snapshots_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRestoredMachineTakesNoOlderBundle: the machine has the higher counter and the later release keys of the snapshot
// and of its own past. A snapshot of before there were bundles is restored as before.
func TestRestoredMachineTakesNoOlderBundle(t *testing.T) {
	first, second := bundle.NamedKeys{Threshold: 1, Keys: []string{"first"}}, bundle.NamedKeys{Threshold: 1, Keys: []string{"second"}}
	rotated := &bundle.Accepted{Counter: 7, Keys: &second, Replaced: []bundle.NamedKeys{first}}
	for name, tc := range map[string]struct {
		saved, here *bundle.Accepted
		counter     int64
		keys        *bundle.NamedKeys
	}{
		"a snapshot of before":      {nil, rotated, 7, &second},
		"none was ever taken":       {&bundle.Accepted{}, nil, 0, nil},
		"a blank machine":           {rotated, nil, 7, &second},
		"a machine with later keys": {&bundle.Accepted{Counter: 9}, rotated, 9, &second},
		"a machine with less":       {rotated, &bundle.Accepted{Counter: 8}, 8, &second},
	} {
		t.Run(name, func(t *testing.T) {
			m := snapshots.NewMachine(t)
			m.Accepted = tc.saved
			m.Put("a", "1")
			info := m.MustSave()
			to := snapshots.NewTarget(t)
			v := slots.Below(to.DataDir)
			if tc.here != nil {
				testenv.NoError(t, os.Mkdir(v.Dir, 0o755))
				testenv.NoError(t, tc.here.Write(filepath.Join(v.Dir, slots.AcceptedFile)))
			}
			testenv.Must(snapshots.Restore(to, info.Location, m.Key))(t)
			got := testenv.Must(bundle.AcceptedBy(v))(t)
			testenv.Equal(t, got.Counter, tc.counter, "the counter")
			testenv.Equal(t, got.Keys == nil, tc.keys == nil, "there are no keys")
			if tc.keys != nil {
				testenv.EqualSlices(t, got.Keys.Keys, tc.keys.Keys, "the release keys")
			}
			_, err := os.Stat(v.Dir)
			testenv.Equal(t, os.IsNotExist(err), tc.counter == 0, "no folder was made for versions")
		})
	}
}

// TestRestoreWithoutRecordIsRefused: where it cannot be kept which bundles were taken, nothing is restored.
func TestRestoreWithoutRecordIsRefused(t *testing.T) {
	m := snapshots.NewMachine(t)
	m.Accepted = &bundle.Accepted{Counter: 7}
	m.Put("a", "1")
	info := m.MustSave()
	to := snapshots.NewTarget(t)
	v := slots.Below(to.DataDir)
	unlock := testenv.Must(v.Lock())(t)
	_, err := snapshots.Restore(to, info.Location, m.Key)
	testenv.ErrorIs(t, err, slots.ErrBusy)
	testenv.WantError(t, err, "Nothing was changed")
	unlock()
	testenv.Must(snapshots.Restore(to, info.Location, m.Key))(t)
	testenv.Equal(t, testenv.Must(bundle.AcceptedBy(v))(t).Counter, 7, "the counter")
}
