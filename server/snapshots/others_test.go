// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestForeignObjectsAreNotPruned: pruning and deleting leave alone what this server has not saved by that name: other
// programs' objects, names that only begin alike, and copies that a user has made of a snapshot to keep it. It is so
// here and on S3, and for the schedule too.
func TestForeignObjectsAreNotPruned(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	settings := mustS3(t, f.settings())
	settings.Retention, m.o.Retention = 1, 1
	m.o.S3 = func(context.Context) (*config.S3, error) { return settings, nil }
	save := func(name string) string {
		t.Helper()
		m.Put("a", name)
		info := testenv.Must(m.Save(t.Context(), name))(t)
		m.Clock.Step(time.Second)
		return info.Name
	}
	scheduled := func() string {
		t.Helper()
		m.Put("a", m.Clock.Now().String())
		testenv.NoError(t, m.scheduled(t.Context()))
		m.Clock.Step(time.Second)
		newest, err := m.newest()
		testenv.Require(t, err == nil && newest != nil, "%v %v", newest, err)
		return newest.Name
	}
	there := func() (here, onS3 []string) {
		for _, key := range f.keys() {
			onS3 = append(onS3, strings.TrimPrefix(key, "a/b/"))
		}
		return names(t, m.o.Dir), onS3
	}
	copyOf := func(name, to string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(m.o.Dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(m.o.Dir, to), data, 0o600)
		}
		testenv.NoError(t, err)
		f.mu.Lock()
		f.objects["a/b/"+to] = data
		f.mu.Unlock()
	}
	first := save("nightly")
	stay := []string{save("nightly-board1"), save("nightly-board1-20261121T000000Z"), save("on-demand")}
	for _, to := range []string{"nightly-board1-before-upgrade", first + ".bak", first + "-2", "x" + first} {
		copyOf(first, to)
		stay = append(stay, to)
	}
	auto := scheduled()
	copyOf(auto, "keep-this-one")
	stay = append(stay, "keep-this-one", scheduled())
	for name, text := range map[string]string{"notes.txt": "another program's", "nightly-board1-20251121T000000Z": "and of our form", "empty": ""} {
		testenv.NoError(t, os.WriteFile(filepath.Join(m.o.Dir, name), []byte(text), 0o600))
		f.objects["a/b/"+name] = []byte(text)
		stay = append(stay, name)
	}
	deleted, err := m.Prune(t.Context(), "nightly", 0)
	testenv.False(t, err != nil || !slices.Equal(deleted, []string{first}), "pruned %q, %v; want %q", deleted, err, first)
	slices.Sort(stay)
	for _, name := range []string{"notes.txt", "nightly-board1-20251121T000000Z", "empty", "a", "..", "../a", "../../etc/passwd", "a/b", "", ".", "b/../notes.txt"} {
		deleted, err := m.Delete(t.Context(), []string{name})
		testenv.False(t, len(deleted) > 0 || err == nil, "%q: deleted %q, %v", name, deleted, err)
	}
	here, onS3 := there()
	testenv.EqualSlices(t, here, stay, "here are")
	testenv.EqualSlices(t, onS3, stay, "on S3 are")
}

// TestSnapshotsAreFoundHoweverFolderIsSpelt: what was saved is found again, and goes, however the folder is spelt.
func TestSnapshotsAreFoundHoweverFolderIsSpelt(t *testing.T) {
	for _, folder := range []string{"", "/", "a", "a/b", "/a/b/", "a//b", "./a", "a/./b", "a/../b"} {
		t.Run(folder, func(t *testing.T) {
			f, m := newFakeS3(t), newMachine(t)
			values := f.settings()
			values[config.S3Folder] = folder
			settings := mustS3(t, values)
			m.o.S3 = func(context.Context) (*config.S3, error) { return settings, nil }
			m.MustSave()
			if list, err := m.List(t.Context()); err != nil || len(list) != 2 || list[1].Problem != "" {
				t.Errorf("listed are %+v, %v", list, err)
			}
			if _, err := m.Prune(t.Context(), "", 0); err != nil || len(f.keys()) > 0 {
				t.Errorf("after pruning all there are %q, %v", f.keys(), err)
			}
		})
	}
}

// TestPruneKeepsWhatS3ShouldKeep: a request that says how many stay on S3 means that, beside how many stay here.
func TestPruneKeepsWhatS3ShouldKeep(t *testing.T) {
	for _, c := range []struct {
		asked            map[string]string
		keep, here, onS3 int
	}{
		{nil, 1, 1, 1},
		{map[string]string{config.S3Region: "x"}, 1, 1, 1},
		{map[string]string{config.S3Retention: "3"}, 1, 1, 3},
		{nil, ConfiguredRetention, 3, 2},
		{map[string]string{config.S3Retention: "1"}, ConfiguredRetention, 3, 1},
	} {
		f, m := newFakeS3(t), newMachine(t)
		m.o.S3 = func(ctx context.Context) (*config.S3, error) {
			return config.ParseS3(config.OverlayS3(f.settings(), QueryOf(ctx).Values))
		}
		m.o.Retention = 3 // f.settings have 2 for S3
		for i := range 4 {
			m.Put("a", fmt.Sprint(i))
			m.MustSave()
		}
		ctx := WithQuery(t.Context(), config.AskedS3{Values: c.asked})
		if _, err := m.Prune(ctx, "", c.keep); err != nil || len(names(t, m.o.Dir)) != c.here || len(f.keys()) != c.onS3 {
			t.Errorf("with %q, here are %q and on S3 %q, %v", c.asked, names(t, m.o.Dir), f.keys(), err)
		}
	}
}

// TestS3ErrorsKeepSecrets: whatever goes wrong, neither a key nor a token nor the proxy's password is said.
func TestS3ErrorsKeepSecrets(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	m.Put("a", "1")
	closed := "127.0.0.1:1"
	secrets := map[string]string{config.S3SecretKey: "sEcReTkEy", config.S3SessionToken: "tOkEn"}
	for what, change := range map[string]map[string]string{
		"another authority":      {config.S3EndpointCA: ""},
		"no server there":        {config.S3Endpoint: closed},
		"no proxy":               {config.S3Proxy: "http://user:pAsSwOrD@" + closed},
		"no TLS":                 {config.S3Insecure: "true"},
		"another key":            {config.S3AccessKey: "nobody"},
		"another bucket":         {config.S3Bucket: "ships"},
		"no bucket's name":       {config.S3Bucket: "a/b?c"},
		"what S3 does not allow": {config.S3Folder: strings.Repeat("x", 2000)},
	} {
		values := f.settings()
		maps.Copy(values, secrets)
		maps.Copy(values, change)
		settings, err := config.ParseS3(values)
		if err == nil {
			settings.Timeout = 5 * time.Second // attempts go on until then
			m.o.S3 = func(context.Context) (*config.S3, error) { return settings, nil }
			_, err = m.Save(t.Context(), "")
			m.Clock.Step(time.Second)
		}
		testenv.False(t, err == nil && what != "what S3 does not allow", "%s: it works", what)
		for _, secret := range []string{"sEcReTkEy", "tOkEn", "pAsSwOrD"} {
			testenv.False(t, err != nil && strings.Contains(err.Error(), secret), "%s: %v", what, err)
		}
		t.Logf("%s: %.200v", what, err)
	}
}
