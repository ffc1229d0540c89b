// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"aead.dev/minisign"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// upgradeFixture is a machine with one version, and with two site keys of which both have to sign.
type upgradeFixture struct {
	t       *testing.T
	dir     string
	v       *slots.Versions
	current string // a digest
	keys    []minisign.PrivateKey
	out     *changingWriter
	flags   bundleFlags
	retry   bool
}

// changingWriter calls a function at its first call to Write.
type changingWriter struct {
	bytes.Buffer
	change func()
}

func (w *changingWriter) Write(p []byte) (int, error) {
	if w.change != nil {
		w.change()
		w.change = nil
	}
	return w.Buffer.Write(p)
}

func newUpgradeFixture(t *testing.T) *upgradeFixture {
	t.Helper()
	f := &upgradeFixture{t: t, dir: t.TempDir(), current: strings.Repeat("1", 64), out: &changingWriter{}}
	f.v = slots.Below(f.dir)
	testenv.NoError(t, os.MkdirAll(f.v.Slot(f.current, ""), 0o755))
	facts, _ := bundle.FactsOfThis()
	script := "#!/bin/sh\necho '{\"version\": \"" + facts.Version + "\", \"containerdDB\": \"v1.3\", \"shim\": 3}'\n"
	testenv.NoError(t, os.WriteFile(f.v.ProgramOf(f.current), []byte(script), 0o755))
	testenv.NoError(t, os.Symlink(f.current, filepath.Join(f.v.Dir, "current")))
	f.flags = bundleFlags{keys: filepath.Join(f.dir, "trusted-keys"), oneWay: true}
	text := "threshold: 2\n"
	for range 2 {
		public, private, err := minisign.GenerateKey(nil)
		testenv.NoError(t, err)
		f.keys = append(f.keys, private)
		text += public.String() + "\n"
	}
	testenv.NoError(t, os.WriteFile(f.flags.keys, []byte(text), 0o644))
	return f
}

// bundle makes a bundle, and signs it by keys.
func (f *upgradeFixture) bundle(counter int64, architecture string, keys ...minisign.PrivateKey) string {
	f.t.Helper()
	program, image := filepath.Join(f.dir, "program"), filepath.Join(f.dir, "web.tar")
	testenv.NoError(f.t, writeFakeProgram(program, architecture, "next"))
	var b bytes.Buffer
	testenv.NoError(f.t, imagetar.Write(&b, imagetar.Image{Name: "example.test/web:1", User: "image"}))
	testenv.NoError(f.t, os.WriteFile(image, b.Bytes(), 0o644))
	o := bundle.Options{Name: "spring", Counter: counter, Programs: []string{program}, Images: []string{image}, Out: filepath.Join(f.dir, "spring.bundle")}
	o.Facts, o.Marks = bundle.FactsOfThis()
	_, _, err := bundle.Make(f.t.Context(), o)
	testenv.NoError(f.t, err)
	for _, key := range keys {
		_, err := bundle.Sign(f.t.Context(), o.Out, key)
		testenv.NoError(f.t, err)
	}
	return o.Out
}

// upgrade is an upgrade to what is in a file.
func (f *upgradeFixture) upgrade(file string) *upgrade {
	f.t.Helper()
	cmd := &cobra.Command{}
	cmd.SetOut(f.out)
	tool := &config.Tool{Paths: config.NewPaths(f.dir, filepath.Join(f.dir, "run"))}
	u := &upgrade{inv: &invocation{toolCommand: &toolCommand{Command: cmd, app: testApp()}, tool: tool}, v: f.v, file: file}
	u.state = testenv.Must(f.v.State())(f.t)
	return u
}

// files are all files of the versions with their contents.
func (f *upgradeFixture) files() string {
	f.t.Helper()
	var b strings.Builder
	testenv.NoError(f.t, filepath.WalkDir(f.v.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var data []byte
			data, err = os.ReadFile(path)
			b.WriteString(path + " " + string(data) + "\n")
		} else {
			b.WriteString(path + "\n")
		}
		return err
	}))
	return b.String()
}

// change overwrites a text in a file with another one of the same length.
func (f *upgradeFixture) change(file, from, to string) {
	f.t.Helper()
	data := testenv.Must(os.ReadFile(file))(f.t)
	testenv.True(f.t, bytes.Contains(data, []byte(from)), "%q is not in the file", from)
	out := testenv.Must(os.OpenFile(file, os.O_WRONLY, 0))(f.t)
	_, err := out.WriteAt([]byte(to), int64(bytes.LastIndex(data, []byte(from))))
	testenv.NoError(f.t, errors.Join(err, out.Close()))
}

// TestHostileBundlesChangeNothing: a stick passes through many hands. Each refusal has a sentence of its own, nothing
// of the bundle runs, and the versions are as they were.
func TestHostileBundlesChangeNothing(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	_, unknown, err := minisign.GenerateKey(nil)
	testenv.NoError(t, err)
	both := func(f *upgradeFixture) string { return f.bundle(12, runtime.GOARCH, f.keys...) }
	for name, tc := range map[string]struct {
		file func(f *upgradeFixture) string
		want string
	}{
		"one of two signatures": {func(f *upgradeFixture) string { return f.bundle(12, runtime.GOARCH, f.keys[0]) },
			"1 of the 2 site keys have signed it, and 2 have to. Nothing was changed"},
		"no signature":     {func(f *upgradeFixture) string { return f.bundle(12, runtime.GOARCH) }, "it is not signed. Nothing was changed"},
		"an unknown key":   {func(f *upgradeFixture) string { return f.bundle(12, runtime.GOARCH, unknown) }, "keys that are not trusted here"},
		"an old counter":   {func(f *upgradeFixture) string { return f.bundle(11, runtime.GOARCH, f.keys...) }, "its counter is 11, and that of the newest was 12"},
		"other processor":  {func(f *upgradeFixture) string { return f.bundle(12, other, f.keys...) }, "it has no program for this processor (" + runtime.GOARCH},
		"other containerd": {func(f *upgradeFixture) string { f.flags.oneWay = false; return both(f) }, "To take it all the same: --one-way"},
		"cut off": {func(f *upgradeFixture) string {
			file := both(f)
			testenv.NoError(f.t, os.Truncate(file, testenv.Must(os.Stat(file))(f.t).Size()-1024))
			return file
		}, "it is cut off"},
		"no tar": {func(f *upgradeFixture) string {
			file := filepath.Join(f.dir, "no.bundle")
			testenv.NoError(f.t, os.WriteFile(file, bytes.Repeat([]byte("x"), 4096), 0o600))
			return file
		}, "it is no tar. Nothing was changed"},
		"changed index": {func(f *upgradeFixture) string {
			file := both(f)
			f.change(file, `"counter": 12`, `"counter": 13`)
			return file
		}, "its index was changed after it was signed"},
		"an image changed after the check": {func(f *upgradeFixture) string {
			file := both(f)
			f.out.change = func() { f.change(file, `"User":"image"`, `"User":"other"`) }
			return file
		}, "does not have that digest"},
		"the program changed after the check": {func(f *upgradeFixture) string {
			file := both(f)
			f.out.change = func() {
				f.change(file, "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xfe")
			}
			return file
		}, "does not have that digest"},
		"a program where signatures are required": {func(f *upgradeFixture) string {
			keys := testenv.Must(os.ReadFile(f.flags.keys))(f.t)
			testenv.NoError(f.t, os.WriteFile(f.flags.keys, append(keys, "require-signed: true\n"...), 0o644))
			both(f)
			return filepath.Join(f.dir, "program")
		}, "is a program without a bundle, and this machine requires signatures"},
		"another program in the place of the current one where signatures are required": {func(f *upgradeFixture) string {
			keys := testenv.Must(os.ReadFile(f.flags.keys))(f.t)
			testenv.NoError(f.t, os.WriteFile(f.flags.keys, append(keys, "require-signed: true\n"...), 0o644))
			file := f.v.ProgramOf(testenv.Must(f.v.State())(f.t).Current)
			testenv.NoError(f.t, os.WriteFile(file, []byte("another program"), 0o755))
			return file
		}, "is a program without a bundle, and this machine requires signatures"},
		"a named pipe": {func(f *upgradeFixture) string {
			file := filepath.Join(f.dir, "pipe")
			testenv.NoError(f.t, unix.Mkfifo(file, 0o600))
			return file
		}, "it is no regular file"},
		"keys for all to write": {func(f *upgradeFixture) string {
			testenv.NoError(f.t, os.Chmod(f.flags.keys, 0o666))
			return both(f)
		}, "can be written by others"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newUpgradeFixture(t)
			testenv.NoError(t, bundle.KeepAccepted(f.v, bundle.Accepted{Counter: 12}))
			file := tc.file(f)
			before := f.files()
			done, err := f.upgrade(file).take(t.Context(), f.flags, f.retry)
			testenv.WantError(t, err, tc.want)
			testenv.False(t, done, "it was done")
			testenv.Equal(t, f.files(), before, "the versions are")
		})
	}
}

// TestBundleIsUnpackedIntoSlot: the program, what else the bundle brings, and the counter for the time after the
// commit.
func TestBundleIsUnpackedIntoSlot(t *testing.T) {
	f := newUpgradeFixture(t)
	testenv.NoError(t, bundle.KeepAccepted(f.v, bundle.Accepted{Counter: 12}))
	for _, counter := range []int64{13, 11} { // the second one is on purpose, over the first one
		f.flags.downgrade = counter < 12
		u := f.upgrade(f.bundle(counter, runtime.GOARCH, f.keys...))
		done, err := u.unpack(t.Context(), f.flags, false)
		testenv.NoError(t, err)
		testenv.False(t, done, "it was done")
		testenv.Equal(t, testenv.Must(slots.Digest(f.v.ProgramOf(u.digest)))(t), u.digest, "the program's digest")
		x := testenv.Must(bundle.ReadIndex(f.v.Slot(u.digest, slots.BundleFolder+"/"+bundle.IndexFile)))(t)
		testenv.Equal(t, x.Contents.Counter, counter, "the counter of the bundle in the slot")
		testenv.NoError(t, testenv.Err(os.Stat(f.v.Slot(u.digest, slots.BundleFolder+"/"+bundle.ImagesFile))))
		testenv.Equal(t, testenv.Must(bundle.AcceptedBy(f.v))(t).Counter, 12, "before a commit, the counter")
		kept := testenv.Must(bundle.ReadAccepted(f.v.Slot(u.digest, slots.AcceptedFile)))(t)
		testenv.Equal(t, kept.Counter, max(counter, 12), "after a commit, the counter")
	}
	// The settings cannot be asked where nothing runs: the slot goes, and nothing is on trial.
	before := f.upgrade("").state
	_, err := f.upgrade(f.bundle(14, runtime.GOARCH, f.keys...)).take(t.Context(), f.flags, false)
	testenv.WantError(t, err, "coracle does not run on this machine")
	testenv.Equal(t, f.upgrade("").state, before, "the state is")
	testenv.Equal(t, len(testenv.Must(filepath.Glob(f.v.Slot("*", slots.BundleFolder)))(t)), 0, "slots that are left:")
}
