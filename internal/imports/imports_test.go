// SPDX-License-Identifier: Apache-2.0

package imports_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/internal/imports"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// content says what is in a bundle: names of images, and charts and manifests with their text.
type content struct {
	name      string
	counter   int64
	images    []string
	charts    map[string]string
	manifests map[string]string
}

func (c content) open(t *testing.T) *bundle.Bundle {
	t.Helper()
	dir := t.TempDir()
	o := bundle.Options{Name: c.name, Counter: c.counter, Out: filepath.Join(dir, "b.bundle")}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	for i, image := range c.images {
		var b bytes.Buffer
		testenv.NoError(t, imagetar.Write(&b, imagetar.Image{Name: image}))
		o.Images = append(o.Images, write(string(rune('a'+i))+".tar", b.String()))
	}
	for name, text := range c.charts {
		o.Charts = append(o.Charts, write(name, text))
	}
	for name, text := range c.manifests {
		o.Manifests = append(o.Manifests, write(name, text))
	}
	_, _, err := bundle.Make(t.Context(), o)
	testenv.NoError(t, err)
	b, done, err := bundle.OpenFile(o.Out)
	testenv.NoError(t, err)
	t.Cleanup(done)
	return b
}

// spring12 and spring13 are two bundles of one name. The second lacks a manifest and a chart of the first.
var (
	spring12 = content{name: "spring", counter: 12, images: []string{"example.test/web:1"},
		charts:    map[string]string{"old-1.tgz": "old", "web-1.tgz": "chart 1"},
		manifests: map[string]string{"gone.yaml": "kind: Gone\n", "shop.yaml": "kind: Shop\n"}}
	spring13 = content{name: "spring", counter: 13, images: []string{"example.test/web:2"}, charts: map[string]string{"web-1.tgz": "chart 2"},
		manifests: map[string]string{"shop.yaml": "kind: Shop2\n", "new.yaml": "kind: New\n"}}
)

var (
	after12 = []string{"charts/spring/old-1.tgz", "charts/spring/web-1.tgz", "images/spring.tar", "manifests/spring/gone.yaml",
		"manifests/spring/shop.yaml"}
	after13 = []string{"charts/spring/web-1.tgz", "images/spring.tar", "manifests/spring/new.yaml", "manifests/spring/shop.yaml"}
)

// placed lists the files in the folders that coracle reads.
func placed(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, folder := range []string{"charts", "images", "manifests"} {
		err := filepath.WalkDir(filepath.Join(dir, folder), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && !d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
				name, _ := filepath.Rel(dir, path)
				names = append(names, name)
			}
			return err
		})
		testenv.NoError(t, err)
	}
	return names
}

func folders(dir string) imports.Folders { return imports.Of(config.NewPaths(dir, ""), false) }

func read(t *testing.T, parts ...string) string {
	t.Helper()
	return string(testenv.Must(os.ReadFile(filepath.Join(parts...)))(t))
}

func errorContains(t *testing.T, err error, text string) {
	t.Helper()
	testenv.True(t, err != nil && strings.Contains(err.Error(), text), "error %v, want %q", err, text)
}

func TestNewerBundleReplacesTheOneOfItsName(t *testing.T) {
	dir := t.TempDir()
	f := folders(dir)
	other := content{name: "other", counter: 1, manifests: map[string]string{"own.yaml": "kind: Own\n"}}
	testenv.NoError(t, f.Import(t.Context(), other.open(t), false))
	testenv.NoError(t, f.Import(t.Context(), spring12.open(t), false))
	testenv.EqualSlices(t, placed(t, dir), slices.Sorted(slices.Values(append(slices.Clone(after12), "manifests/other/own.yaml"))), "files")
	testenv.NoError(t, f.Import(t.Context(), spring13.open(t), false))
	testenv.EqualSlices(t, placed(t, dir), slices.Sorted(slices.Values(append(slices.Clone(after13), "manifests/other/own.yaml"))), "files")
	testenv.Equal(t, read(t, dir, "manifests/spring/shop.yaml"), "kind: Shop2\n", "the manifest")
	testenv.Equal(t, read(t, dir, "charts/spring/web-1.tgz"), "chart 2", "the chart")
	archive := filepath.Join(dir, "images/spring.tar")
	testenv.True(t, strings.Contains(read(t, archive), "example.test/web:2"), "the archive is of the first bundle")

	// Once more changes nothing, and what is older changes nothing either.
	testenv.NoError(t, f.Import(t.Context(), spring13.open(t), false))
	err := f.Import(t.Context(), spring12.open(t), false)
	errorContains(t, err, "nothing was imported: it is older than what was imported: its counter is 12, and that of the bundle spring here is 13")
	testenv.NoError(t, f.Import(t.Context(), spring12.open(t), true))
	testenv.EqualSlices(t, placed(t, dir), slices.Sorted(slices.Values(append(slices.Clone(after12), "manifests/other/own.yaml"))), "files")

	// A bundle of that name without images takes the archive away, and nothing else is left behind.
	testenv.NoError(t, f.Import(t.Context(), content{name: "spring", counter: 14, manifests: spring13.manifests}.open(t), false))
	testenv.EqualSlices(t, placed(t, dir), []string{"manifests/other/own.yaml", "manifests/spring/new.yaml", "manifests/spring/shop.yaml"}, "files")
	var left []string
	for _, e := range testenv.Must(os.ReadDir(f.Bundles))(t) {
		left = append(left, e.Name())
	}
	testenv.EqualSlices(t, left, []string{".lock", "other.json", "spring.json"}, "records")
}

func TestAgentTakesImagesAlone(t *testing.T) {
	dir := t.TempDir()
	f := imports.Of(config.NewPaths(dir, ""), true)
	testenv.NoError(t, f.Import(t.Context(), spring12.open(t), false))
	testenv.EqualSlices(t, placed(t, dir), []string{"images/spring.tar"}, "files")
	err := f.Import(t.Context(), content{name: "m", counter: 1, manifests: spring12.manifests}.open(t), false)
	errorContains(t, err, "nothing was imported: it has no images, and charts and manifests are imported on a server")
}

// TestPowerLossDuringAnImport ends an import of a newer bundle at each of its steps. The next start leaves the machine
// with all of one of the two, and a second import with the newer. A manifest that is in both is never missing: its
// objects would be deleted.
func TestPowerLossDuringAnImport(t *testing.T) {
	older, newer := spring12.open(t), spring13.open(t)
	lost := errors.New("no power")
	finished := false
	for end := 1; !finished; end++ {
		dir := t.TempDir()
		f := folders(dir)
		testenv.NoError(t, f.Import(t.Context(), older, false))
		var steps []string
		f.After = func(step string) error {
			testenv.True(t, slices.Contains(placed(t, dir), "manifests/spring/shop.yaml"), "after %v a manifest of both is missing", steps)
			if steps = append(steps, step); len(steps) == end {
				return lost
			}
			return nil
		}
		err := f.Import(t.Context(), newer, false)
		finished = err == nil
		testenv.Require(t, finished || errors.Is(err, lost), "import: %v", err)
		f.After = nil
		testenv.NoError(t, f.Finish())
		testenv.NoError(t, f.Finish())
		want := after13
		if slices.Equal(steps, []string{"extract"}) {
			want = after12
		}
		testenv.EqualSlices(t, placed(t, dir), want, "files at the next start, interrupted after %v", steps)
		testenv.NoError(t, f.Import(t.Context(), newer, false))
		testenv.EqualSlices(t, placed(t, dir), after13, "files after another import, interrupted after %v", steps)
		testenv.Equal(t, testenv.Must(f.Imported("spring"))(t).Contents.Counter, 13, "the counter on record")
		testenv.Require(t, end < 100, "an import has %d steps", end)
	}
}

func TestDamagedBundleChangesNothing(t *testing.T) {
	dir := t.TempDir()
	f := folders(dir)
	testenv.NoError(t, f.Import(t.Context(), spring12.open(t), false))
	path := filepath.Join(t.TempDir(), "b")
	var buf bytes.Buffer
	// The file is changed after it was opened and verified.
	o := bundle.Options{Name: "spring", Counter: 13, Out: path, Manifests: []string{filepath.Join(t.TempDir(), "shop.yaml")}}
	testenv.NoError(t, os.WriteFile(o.Manifests[0], []byte("kind: Harmless"), 0o644))
	_, _, err := bundle.Make(t.Context(), o)
	testenv.NoError(t, err)
	b, done, err := bundle.OpenFile(path)
	testenv.NoError(t, err)
	defer done()
	buf.WriteString(strings.Replace(read(t, path), "kind: Harmless", "kind: Harmful!", 1))
	testenv.NoError(t, os.WriteFile(path, buf.Bytes(), 0o644))
	errorContains(t, f.Import(t.Context(), b, false), "nothing was imported: taking images, charts and manifests from the bundle: the bundle is damaged")
	testenv.EqualSlices(t, placed(t, dir), after12, "files")
}

func TestChartsOfABundleBecomeContent(t *testing.T) {
	dir := t.TempDir()
	f := folders(dir)
	small, large := "a chart", strings.Repeat("x", 2<<20)
	plain := "# as it was\nkind: ConfigMap\napiVersion: v1\nmetadata: {name: HelmChart}\n"
	manifest := plain + "---\napiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: web}\nspec:\n  chart: web-1.tgz\n" +
		"  set: {size: 30000000, m: 12345678901234567}\n" +
		"---\napiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: big}\nspec: {chart: big-1.tgz}\n" +
		"---\napiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: far}\nspec: {chart: ../../web-1.tgz}\n" +
		"---\napiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: other}\nspec: {chart: other.tgz}\n"
	testenv.NoError(t, f.Import(t.Context(), content{name: "spring", counter: 1, charts: map[string]string{"web-1.tgz": small, "big-1.tgz": large},
		manifests: map[string]string{"charts.yaml": manifest}}.open(t), false))
	docs := strings.Split(read(t, dir, "manifests/spring/charts.yaml"), "---\n")
	testenv.Equal(t, docs[0], plain, "another object")
	testenv.Equal(t, docs[1], `{"apiVersion":"helm.cattle.io/v1","kind":"HelmChart","metadata":{"name":"web"},"spec":{"chartContent":"`+
		base64.StdEncoding.EncodeToString([]byte(small))+`","set":{"m":12345678901234567,"size":30000000}}}`+"\n", "a chart")
	testenv.True(t, strings.Contains(docs[2], `"chart":"spring/big-1.tgz"`), "a large chart: %.200s", docs[2])
	testenv.True(t, strings.Contains(docs[3], "chart: ../../web-1.tgz") && strings.Contains(docs[4], "chart: other.tgz"), "other charts: %v", docs[3:])
}

// commit makes a version current whose bundle brings something.
func commit(t *testing.T, v *slots.Versions, digest string, c *content) {
	t.Helper()
	digest = strings.Repeat(digest, 64)
	testenv.NoError(t, os.MkdirAll(v.Slot(digest, ""), 0o755))
	testenv.NoError(t, os.WriteFile(v.ProgramOf(digest), nil, 0o755))
	if _, err := os.Stat(v.Slot(digest, slots.BundleFolder)); c != nil && err != nil {
		testenv.NoError(t, c.open(t).Extract(t.Context(), v.Slot(digest, slots.BundleFolder)))
	}
	testenv.NoError(t, v.Begin(digest))
	testenv.NoError(t, v.Commit(digest))
	testenv.NoError(t, v.Prune())
}

func TestSlotsBringTheirContent(t *testing.T) {
	dir := t.TempDir()
	f, v := folders(dir), slots.Below(dir)
	unlock, err := v.Lock()
	testenv.NoError(t, err)
	defer unlock()
	apply := func(what string, want ...string) {
		t.Helper()
		for range 2 {
			testenv.NoError(t, f.ApplySlot(v))
			testenv.EqualSlices(t, placed(t, dir), want, "files after %s", what)
		}
	}
	archive := func(digest string) string { return "images/_slot-" + strings.Repeat(digest, 12) + ".tar" }
	apply("no version")
	commit(t, v, "a", nil)
	apply("a version without a bundle")
	testenv.NoError(t, f.Import(t.Context(), spring12.open(t), false))
	commit(t, v, "b", &spring13)
	apply("a bundle of the name of an import", "charts/spring/web-1.tgz", archive("b"), "manifests/spring/new.yaml", "manifests/spring/shop.yaml")
	errorContains(t, f.Import(t.Context(), spring12.open(t), false), "older than what was imported")
	summer := content{name: "summer", counter: 14, images: []string{"example.test/web:3"}, manifests: map[string]string{"shop.yaml": "kind: Shop3\n"}}
	commit(t, v, "c", &summer)
	apply("a bundle of another name", archive("b"), archive("c"), "manifests/summer/shop.yaml")
	commit(t, v, "b", nil)
	apply("the way back", "charts/spring/web-1.tgz", archive("b"), archive("c"), "manifests/spring/new.yaml", "manifests/spring/shop.yaml")

	// What was imported since, or removed by hand, stays so at the next start.
	testenv.NoError(t, os.Remove(filepath.Join(dir, "manifests/spring/new.yaml")))
	apply("a start", "charts/spring/web-1.tgz", archive("b"), archive("c"), "manifests/spring/shop.yaml")

	// Two versions without anything: what the last bundle brought stays, the rest goes.
	commit(t, v, "d", &content{name: "programs", counter: 15, images: nil, manifests: nil, charts: map[string]string{"x.tgz": ""}})
	apply("a bundle with a chart alone", "charts/programs/x.tgz", archive("b"))
	commit(t, v, "e", nil)
	apply("no bundle", "charts/programs/x.tgz", archive("b"))
}

// TestFilesOfTheOperatorStay: a bundle takes no place of what no bundle has brought, and has no name of the records.
func TestFilesOfTheOperatorStay(t *testing.T) {
	for _, own := range []string{"manifests/spring/own.yaml", "charts/spring/own-1.tgz", "images/spring.tar"} {
		dir := t.TempDir()
		f := folders(dir)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, own)), 0o755))
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, own), []byte("own"), 0o644))
		errorContains(t, f.Import(t.Context(), spring12.open(t), false), "was not brought by a bundle")
		testenv.Equal(t, read(t, dir, own), "own", "%s", own)
		testenv.EqualSlices(t, placed(t, dir), []string{own}, "files")
	}
	dir := t.TempDir()
	f := folders(dir)
	for _, name := range []string{"lock", "spring"} {
		c := spring12
		c.name = name
		testenv.NoError(t, f.Import(t.Context(), c.open(t), false))
	}
	c := spring12
	c.name = "spring.json"
	errorContains(t, f.Import(t.Context(), c.open(t), false), "give it another name")
}

// TestFailedUpgradeKeepsContentOfThePreviousVersion: a bundle that has the program of the previous version, and cannot
// be extracted, leaves that version's content whole. Half of it would delete the rest from the cluster after an undo.
func TestFailedUpgradeKeepsContentOfThePreviousVersion(t *testing.T) {
	dir := t.TempDir()
	f, v := folders(dir), slots.Below(dir)
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	commit(t, v, "a", &spring12)
	testenv.NoError(t, f.ApplySlot(v))
	before := placed(t, dir)
	commit(t, v, "b", nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	errorContains(t, imports.ExtractSlot(ctx, spring13.open(t), v, a), "context canceled")
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "bundles/.slot"), []byte(`{"digest":"`+b+`","name":"spring"}`), 0o600))
	commit(t, v, "a", nil)
	testenv.NoError(t, f.ApplySlot(v))
	testenv.EqualSlices(t, placed(t, dir), before, "files after the way back")
	testenv.NoError(t, imports.ExtractSlot(t.Context(), spring13.open(t), v, a))
	x := testenv.Must(bundle.ReadIndex(v.Slot(a, slots.BundleFolder+"/index.json")))(t)
	testenv.Equal(t, x.Contents.Counter, 13, "the counter of the new content")
	left := testenv.Must(filepath.Glob(v.Slot(a, slots.BundleFolder+".*")))(t)
	testenv.Equal(t, len(left), 0, "folders are left:")
}
