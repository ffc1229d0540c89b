// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"aead.dev/minisign"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const testVersion = "v1.37.0+coracle7"

var testFacts = Facts{Version: testVersion, Level: 2, OldestLevel: 1, Kubernetes: "1.37", ContainerdDB: "v1.4", Shim: 3}

// fakeProgram writes a file that begins like a program for a processor, and has some content.
func fakeProgram(t testing.TB, path string, machine elf.Machine, content string) string {
	t.Helper()
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Ehsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	testenv.NoError(t, binary.Write(&b, binary.LittleEndian, h))
	b.WriteString(content)
	testenv.NoError(t, os.WriteFile(path, b.Bytes(), 0o755))
	return path
}

// contents writes the files for a bundle with something of each kind into a folder.
func contents(t testing.TB, dir string) Options {
	t.Helper()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	saved := func(name string, images ...imagetar.Image) string {
		var b bytes.Buffer
		testenv.NoError(t, imagetar.Write(&b, images...))
		return write(name, b.String())
	}
	base := []imagetar.File{{Path: "/base", Body: bytes.Repeat([]byte("base"), 999)}}
	return Options{
		Name: "spring", Counter: 5, Out: filepath.Join(dir, "spring.bundle"), Facts: testFacts, Marks: []string{testVersion},
		Programs: []string{fakeProgram(t, filepath.Join(dir, "coracle-arm64"), elf.EM_AARCH64, "arm "+testVersion),
			fakeProgram(t, filepath.Join(dir, "coracle-amd64"), elf.EM_X86_64, "amd "+testVersion)},
		Images: []string{
			saved("one.tar", imagetar.Image{Name: "example.test/one:1", Files: base}),
			saved("two.tar", imagetar.Image{Name: "example.test/two:1", Files: base}, imagetar.Image{Name: "hello:2", Files: base, User: "7"}),
		},
		Charts: []string{write("web-1.0.tgz", "a chart")}, Manifests: []string{write("namespace.yaml", "kind: Namespace")},
		SBOM: write("sbom.json", "{}"),
	}
}

func made(t testing.TB, o Options) []byte {
	t.Helper()
	_, size, err := Make(t.Context(), o)
	testenv.NoError(t, err, "making a bundle")
	data := testenv.Must(os.ReadFile(o.Out))(t)
	testenv.Equal(t, int64(len(data)), size, "the size that Make returned")
	return data
}

func opened(t testing.TB, data []byte) *Bundle {
	t.Helper()
	return testenv.Must(Open(bytes.NewReader(data), int64(len(data))))(t)
}

func TestBundleHasWhatWasPutIntoIt(t *testing.T) {
	o := contents(t, t.TempDir())
	b := opened(t, made(t, o))
	c := &b.Index.Contents
	testenv.EqualSlices(t, b.Index.Images(), []string{"docker.io/library/hello:2", "example.test/one:1", "example.test/two:1"}, "images")
	testenv.EqualSlices(t, c.Program.Architectures(), []string{"amd64", "arm64"}, "processors")
	testenv.Equal(t, c.Charts[0].Name+c.Manifests[0].Name+c.SBOM.Name, "web-1.0.tgznamespace.yamlsbom.json", "files")
	testenv.NoError(t, b.CheckBlobs(t.Context()))

	// The program's blob gives the file whose digest is in the index.
	build := c.Program.Build("arm64")
	data := testenv.Must(io.ReadAll(testenv.Must(b.Unpacked(*build))(t)))(t)
	testenv.Equal(t, digest.FromBytes(data), build.File.Digest, "digest of the program")
	testenv.Equal(t, int64(len(data)), build.File.Size, "size of the program")
	testenv.True(t, strings.HasSuffix(string(data), "arm "+testVersion), "another program: %q", data)

	// Three images have their only layer in common: it is there once.
	testenv.Equal(t, len(c.Blobs), 2+3+1+2+2, "blobs: programs, files, the layer, two configurations, two manifests")
}

func TestSameContentsMakeTheSameBytes(t *testing.T) {
	one := contents(t, t.TempDir())
	two := contents(t, t.TempDir())
	two.Programs[0], two.Programs[1] = two.Programs[1], two.Programs[0]
	two.Images[0], two.Images[1] = two.Images[1], two.Images[0]
	testenv.True(t, bytes.Equal(made(t, one), made(t, two)), "another folder and order made other bytes")
	left := testenv.Must(filepath.Glob(filepath.Join(filepath.Dir(one.Out), ".*")))(t)
	testenv.Equal(t, len(left), 0, "files left behind: %v", left)
}

// TestOtherProgramsReadBundles: containerd imports the images of a bundle, and any tar unpacks it.
func TestOtherProgramsReadBundles(t *testing.T) {
	data := made(t, contents(t, t.TempDir()))
	store := testenv.Must(local.NewStore(t.TempDir()))(t)
	index := testenv.Must(archive.ImportIndex(t.Context(), store, bytes.NewReader(data)))(t)
	manifests := testenv.Must(images.Children(t.Context(), store, index))(t)
	var names []string
	for _, m := range manifests {
		names = append(names, m.Annotations[images.AnnotationImageName])
		testenv.NoError(t, walkImage(t.Context(), store, m, func(ocispec.Descriptor) {}))
	}
	testenv.EqualSlices(t, names, []string{"docker.io/library/hello:2", "example.test/one:1", "example.test/two:1"}, "images")

	tr := tar.NewReader(bytes.NewReader(data))
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			testenv.Equal(t, n, 2+len(opened(t, data).Index.Contents.Blobs), "files")
			break
		}
		testenv.NoError(t, err)
		testenv.True(t, n != 0 || h.Name == "index.json", "the first file is %s", h.Name)
		testenv.True(t, h.ModTime.Unix() == 0 && h.Uid == 0 && h.Mode == 0o644, "%s: %+v", h.Name, h)
	}
}

func TestBadContentsMakeNoBundle(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, dir string, o *Options)
		want   string
	}{
		"nothing":       {func(_ *testing.T, _ string, o *Options) { *o = Options{Name: "x", Counter: 1, Out: o.Out} }, "nothing was given"},
		"bad name":      {func(_ *testing.T, _ string, o *Options) { o.Name = "../x" }, `its name "../x" is none`},
		"no counter":    {func(_ *testing.T, _ string, o *Options) { o.Counter = 0 }, "a counter begins with 1"},
		"other version": {func(_ *testing.T, _ string, o *Options) { o.Marks = append(o.Marks, "abcdef") }, "is no build of coracle " + testVersion},
		"two of one processor": {func(t *testing.T, dir string, o *Options) {
			o.Programs = append(o.Programs, fakeProgram(t, filepath.Join(dir, "again"), elf.EM_X86_64, testVersion))
		}, "is a second program for amd64"},
		"other processor": {func(t *testing.T, dir string, o *Options) {
			o.Programs = append(o.Programs, fakeProgram(t, filepath.Join(dir, "mips"), elf.EM_MIPS, testVersion))
		}, "is no program for a processor that coracle runs on (EM_MIPS)"},
		"script":    {func(_ *testing.T, _ string, o *Options) { o.Programs = o.Manifests }, "is no program for Linux"},
		"no images": {func(_ *testing.T, _ string, o *Options) { o.Images = o.Charts }, "no archive of images"},
		"half an image": {func(t *testing.T, _ string, o *Options) {
			data := testenv.Must(os.ReadFile(o.Images[0]))(t)
			testenv.NoError(t, os.WriteFile(o.Images[0], data[:len(data)/3], 0o644))
		}, "is cut off"},
		"one name, two images": {func(t *testing.T, dir string, o *Options) {
			var b bytes.Buffer
			testenv.NoError(t, imagetar.Write(&b, imagetar.Image{Name: "example.test/one:1", User: "8"}))
			o.Images = append(o.Images, filepath.Join(dir, "third.tar"))
			testenv.NoError(t, os.WriteFile(o.Images[2], b.Bytes(), 0o644))
		}, "third.tar has another image example.test/one:1"},
		"two charts of one name": {func(_ *testing.T, _ string, o *Options) { o.Charts = append(o.Charts, o.Charts[0]) }, "has web-1.0.tgz twice"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := contents(t, dir)
			tc.change(t, dir, &o)
			_, _, err := Make(t.Context(), o)
			testenv.WantError(t, err, tc.want)
			left := append(testenv.Must(filepath.Glob(filepath.Join(dir, ".*")))(t), testenv.Must(filepath.Glob(o.Out))(t)...)
			testenv.Equal(t, len(left), 0, "files left behind: %v", left)
		})
	}
}

// TestDamagedFilesAreNoBundles: each has a sentence of its own.
func TestDamagedFilesAreNoBundles(t *testing.T) {
	whole := made(t, contents(t, t.TempDir()))
	index := headerOf(t, "index.json", 3)
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"empty":            {nil, "it is cut off after 0 bytes"},
		"text":             {bytes.Repeat([]byte("no tar at all "), 99), "it is no tar"},
		"another tar":      {append(headerOf(t, "etc/passwd", 0), make([]byte, 1024)...), `its first file is "etc/passwd"`},
		"cut in a blob":    {whole[:len(whole)-3000], "it is cut off after"},
		"cut at its end":   {whole[:len(whole)-1], "it is cut off after"},
		"more behind it":   {append(bytes.Clone(whole), 0), "there are 1 bytes behind its end"},
		"huge index":       {headerOf(t, "index.json", maxIndex+1), "may have 1048576 bytes at most"},
		"not JSON":         {append(append(index, "nil"...), make([]byte, 509+512)...), "its index cannot be read"},
		"archive of other": {append(append(index, "{} "...), make([]byte, 509+512)...), "an archive of images, but no bundle"},
		"newer":            {append(append(headerOf(t, "index.json", 24), `{"coracle":{"format":2}}`...), make([]byte, 1000)...), "it has format 2"},
		"other header":     {changed(whole, "blobs/sha256/", "blobs/sha256."), "is not where its index says"},
		"a link":           {changed(whole, "oci-layout", "../../../x"), "is not where its index says"},
		"bytes between":    {changed(whole, "1.0.0\"}\x00", "1.0.0\"}x"), "there are bytes between its files"},
		"other blob sizes": {changed(whole, `"level": 2`, `"level": 0`), "a program cannot know the levels 1 to 0"},
		"missing blob":     {changed(whole, `"name": "spring"`, `"name": "/pring"`), `its name "/pring" is none`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(bytes.NewReader(tc.data), int64(len(tc.data)))
			testenv.WantError(t, err, tc.want)
		})
	}
}

func headerOf(t *testing.T, name string, size int64) []byte {
	t.Helper()
	return testenv.Must(header(name, size))(t)
}

// changed returns a copy in which the first occurrence of a text is another one of the same length.
func changed(data []byte, from, to string) []byte {
	if len(from) != len(to) || !bytes.Contains(data, []byte(from)) {
		panic("there is no " + from)
	}
	return bytes.Replace(data, []byte(from), []byte(to), 1)
}

// TestSwappedBlobIsFoundWhenItIsRead: the content of each blob is replaced, one after the other.
func TestSwappedBlobIsFoundWhenItIsRead(t *testing.T) {
	data := made(t, contents(t, t.TempDir()))
	for _, blob := range opened(t, data).Index.Contents.Blobs {
		swapped := bytes.Clone(data)
		at := bytes.Index(swapped, []byte(blobName(blob.Digest))) + block
		swapped[at+int(blob.Size)-1] ^= 1
		b := opened(t, swapped)
		testenv.WantError(t, b.CheckBlobs(t.Context()), "the bundle is damaged", blob.Digest.Encoded())
		r := testenv.Must(b.Blob(blob.Digest))(t)
		_, err := io.Copy(io.Discard, r)
		testenv.WantError(t, err, blob.Digest.Encoded())
	}
}

// TestProgramIsWhatTheIndexSays: a packed blob that is whole has another program in it, a longer one, or none.
func TestProgramIsWhatTheIndexSays(t *testing.T) {
	b := opened(t, made(t, contents(t, t.TempDir())))
	builds := b.Index.Contents.Program.Builds
	for name, change := range map[string]func(*Build){
		"another digest":          func(x *Build) { x.File.Digest = builds[1].File.Digest },
		"the other processor's":   func(x *Build) { x.Packed = builds[1].Packed },
		"longer than it says":     func(x *Build) { x.File.Size-- },
		"shorter than it says":    func(x *Build) { x.File.Size++ },
		"not packed, but a chart": func(x *Build) { x.Packed = b.Index.Contents.Charts[0].Blob },
	} {
		was := builds[0]
		change(&builds[0])
		testenv.Fails(t, b.CheckBlobs(t.Context()), "%s was accepted", name)
		builds[0] = was
	}
	testenv.NoError(t, b.CheckBlobs(t.Context()))
}

// TestHostileIndexTakesLittleMemory: before any signature is checked, an index that is as long as it may be, and has as
// many things as fit, takes less memory than a small board has.
func TestHostileIndexTakesLittleMemory(t *testing.T) {
	for list, end := range map[string]string{`{"manifests":[`: "]}", `{"coracle":{"format":1,"blobs":[`: "]}}"} {
		n := (maxIndex - len(list) - len(end)) / len("{},")
		index := []byte(list + strings.Repeat("{},", n-1) + "{}" + end)
		testenv.True(t, json.Valid(index), "the index is no JSON, so it would not be decoded")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := parseIndex(index)
		runtime.ReadMemStats(&after)
		testenv.Fails(t, err, "it was accepted")
		grown := (after.TotalAlloc - before.TotalAlloc) >> 20
		testenv.True(t, grown < 512, "%d MB were allocated", grown)
		t.Logf("%s: %d MB", list, grown)
	}
}

// keyPair makes a pair of keys from a number: the same ones in each run.
func keyPair(t testing.TB, n int) (minisign.PublicKey, minisign.PrivateKey) {
	t.Helper()
	seed := sha256.Sum256(fmt.Append(nil, n))
	public, private, err := minisign.GenerateKey(bytes.NewReader(bytes.Repeat(seed[:], 4)))
	testenv.NoError(t, err)
	return public, private
}

func publicKeys(t testing.TB, threshold int, numbers ...int) Keys {
	k := Keys{Threshold: threshold}
	for _, n := range numbers {
		public, _ := keyPair(t, n)
		k.Public = append(k.Public, public)
	}
	return k
}

// signed returns a bundle with signatures of keys.
func signed(t testing.TB, o Options, numbers ...int) []byte {
	t.Helper()
	made(t, o)
	for _, n := range numbers {
		_, private := keyPair(t, n)
		_, err := Sign(t.Context(), o.Out, private)
		testenv.NoError(t, err)
	}
	return testenv.Must(os.ReadFile(o.Out))(t)
}

func small(t testing.TB) Options {
	dir := t.TempDir()
	o := contents(t, dir)
	return Options{Name: o.Name, Counter: o.Counter, Out: o.Out, Manifests: o.Manifests}
}

func TestBundlesAreAcceptedByKeys(t *testing.T) {
	release := publicKeys(t, 2, 1, 2, 3)
	site := publicKeys(t, 1, 11)
	all := Trusted{Release: release, Site: site}
	strict := Trusted{Release: release, Site: site, RequireSite: true}
	next := publicKeys(t, 2, 3, 4, 5)
	for name, tc := range map[string]struct {
		trusted Trusted
		signers []int
		keys    *Keys
		want    string // the refusal
		rotates bool
	}{
		"two of three":                    {trusted: all, signers: []int{1, 3}},
		"the same key twice":              {trusted: all, signers: []int{1, 1}, want: "1 of the 3 release keys have signed it, and 2 have to"},
		"one of three":                    {trusted: all, signers: []int{1}, want: "too few keys have signed it: 1 of the 3 release keys"},
		"unsigned":                        {trusted: all, want: "it is not signed"},
		"unknown key":                     {trusted: all, signers: []int{4}, want: "keys that are not trusted here: "},
		"one known, one unknown":          {trusted: all, signers: []int{1, 4}, want: "too few keys"},
		"unknown beside enough":           {trusted: all, signers: []int{1, 2, 4}},
		"the site's":                      {trusted: all, signers: []int{11}},
		"a release's and the site's":      {trusted: Trusted{Release: release, Site: publicKeys(t, 2, 11, 12)}, signers: []int{1, 11}, want: "too few keys"},
		"no key trusted":                  {signers: []int{1, 2, 3}, want: "no key is trusted here"},
		"site required and missing":       {trusted: strict, signers: []int{1, 2}, want: "this machine requires 1 signatures by site keys, and it has 0"},
		"site required and there":         {trusted: strict, signers: []int{1, 2, 11}},
		"site required, and it alone":     {trusted: strict, signers: []int{11}},
		"new keys by both sets":           {trusted: all, signers: []int{1, 3, 4}, keys: &next, rotates: true},
		"new keys by the new set only":    {trusted: all, signers: []int{3, 4, 5}, keys: &next, want: "too few keys"},
		"new keys by the old set only":    {trusted: all, signers: []int{1, 2}, keys: &next, want: "only 0 of these have signed it, where 2 are needed"},
		"new keys by new set and site":    {trusted: all, signers: []int{3, 4, 5, 11}, keys: &next, want: "only 1 of the 2 release keys that are needed"},
		"the keys of now again":           {trusted: all, signers: []int{1, 2}, keys: &release},
		"new keys where there are no old": {trusted: Trusted{Site: site}, signers: []int{11}, keys: &next},
	} {
		t.Run(name, func(t *testing.T) {
			o := small(t)
			if tc.keys != nil {
				o.Keys = tc.keys.Named()
			}
			v, err := opened(t, signed(t, o, tc.signers...)).Verify(tc.trusted)
			if tc.want != "" {
				testenv.WantError(t, err, tc.want)
				return
			}
			testenv.NoError(t, err)
			testenv.Equal(t, v.Keys != nil, tc.rotates, "new keys:")
		})
	}
}

func TestChangedIndexIsFound(t *testing.T) {
	data := changed(signed(t, small(t), 1, 2), `"counter": 5`, `"counter": 6`)
	_, err := opened(t, data).Verify(Trusted{Release: publicKeys(t, 2, 1, 2, 3)})
	testenv.WantError(t, err, "its index was changed after it was signed")
}

// TestSignaturesDoNotDependOnOrder: who signs first, and twice, makes no difference.
func TestSignaturesDoNotDependOnOrder(t *testing.T) {
	testenv.True(t, bytes.Equal(signed(t, small(t), 1, 2), signed(t, small(t), 2, 1, 2)), "other bytes")
}

// TestDamagedBundleIsNotSigned: it stays as it was, and nothing is left beside it.
func TestDamagedBundleIsNotSigned(t *testing.T) {
	o := small(t)
	data := made(t, o)
	data[len(data)-tail-block] ^= 1
	testenv.NoError(t, os.WriteFile(o.Out, data, 0o644))
	_, private := keyPair(t, 1)
	_, err := Sign(t.Context(), o.Out, private)
	testenv.WantError(t, err, "does not have that digest")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Sign(ended, o.Out, private)
	testenv.ErrorIs(t, err, context.Canceled)
	testenv.True(t, bytes.Equal(testenv.Must(os.ReadFile(o.Out))(t), data), "the bundle was changed")
	left := testenv.Must(filepath.Glob(filepath.Join(filepath.Dir(o.Out), ".*")))(t)
	testenv.Equal(t, len(left), 0, "files left behind: %v", left)
}

func TestMachinesTakeBundlesThatSuit(t *testing.T) {
	o := contents(t, t.TempDir())
	o.From, o.Facts.OldestLevel = "v1.37.0+coracle3", 2
	o.Programs = o.Programs[:1]
	x := opened(t, made(t, o)).Index
	here := Machine{Architecture: "arm64", Version: "v1.37.0+coracle6", Level: 2, Counter: 5}
	for name, tc := range map[string]struct {
		change func(m *Machine)
		want   string
	}{
		"it suits":           {func(*Machine) {}, ""},
		"a new machine":      {func(m *Machine) { *m = Machine{Architecture: "arm64"} }, ""},
		"newest counter":     {func(m *Machine) { m.Counter = 6 }, "its counter is 5, and that of the newest was 6"},
		"on purpose":         {func(m *Machine) { m.Counter, m.Downgrade = 6, true }, ""},
		"other processor":    {func(m *Machine) { m.Architecture = "amd64" }, "no program for this processor (amd64), only for: arm64"},
		"too old a version":  {func(m *Machine) { m.Version = "v1.37.0+coracle2" }, "runs v1.37.0+coracle2, which is too old for it: go to v1.37.0+coracle3"},
		"oldest version":     {func(m *Machine) { m.Version = "v1.37.0+coracle3" }, ""},
		"numbers, not texts": {func(m *Machine) { m.Version = "v1.37.0+coracle10" }, ""},
		"too old a level":    {func(m *Machine) { m.Level = 1 }, "the cluster has level 1, which is too old"},
		"too new a level":    {func(m *Machine) { m.Level = 3 }, "the cluster has level 3, which is too new"},
	} {
		t.Run(name, func(t *testing.T) {
			m := here
			tc.change(&m)
			err := x.Suits(m)
			testenv.True(t, (err == nil) == (tc.want == ""), "%v", err)
			if tc.want != "" {
				testenv.WantError(t, err, tc.want)
			}
		})
	}
	testenv.WantError(t, opened(t, made(t, small(t))).Index.Suits(here), "it has no program")
}

func TestKeysFilesAreRead(t *testing.T) {
	one, two := publicKeys(t, 1, 1).Public[0], publicKeys(t, 1, 2).Public[0]
	file := testenv.Must(one.MarshalText())(t) // as minisign writes it
	for name, tc := range map[string]struct {
		text, want string
		mode       os.FileMode
	}{
		"a minisign file":  {string(file), "", 0o644},
		"all of it":        {"# ours\n" + one.String() + "\n\n" + two.String() + "\nthreshold: 2\nrequire-site: true\n", "", 0o600},
		"none":             {"# later\n", "", 0o644},
		"a typing error":   {"\n" + one.String()[1:], "line 2", 0o644},
		"a private key":    {"untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAAAA==", "line 2", 0o644},
		"unknown setting":  {"treshold: 2", `line 1: there is no setting "treshold"`, 0o644},
		"too high":         {one.String() + "\nthreshold: 2", "the threshold is 2, and there are 1 keys", 0o644},
		"zero":             {one.String() + "\nthreshold: 0", "the threshold is 0", 0o644},
		"twice":            {one.String() + "\n" + one.String(), "is listed twice", 0o644},
		"twice, renamed":   {one.String() + "\n" + renumbered(t, one), "is listed twice", 0o644},
		"open to everyone": {one.String(), "can be written by others than its owner", 0o666},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "trusted-keys")
			testenv.NoError(t, os.WriteFile(path, []byte(tc.text), 0o600))
			testenv.NoError(t, os.Chmod(path, tc.mode))
			trusted, err := Trust(path)
			if tc.want != "" {
				testenv.WantError(t, err, tc.want)
				return
			}
			testenv.NoError(t, err)
			all := name == "all of it"
			testenv.True(t, trusted.RequireSite == all && (trusted.Site.Threshold == 2) == all, "%+v", trusted)
		})
	}
	trusted, err := Trust(filepath.Join(t.TempDir(), "missing"))
	testenv.NoError(t, err)
	testenv.Equal(t, len(trusted.Site.Public), 0, "keys without a file")
}

// renumbered returns a public key as text under another number.
func renumbered(t *testing.T, key minisign.PublicKey) string {
	t.Helper()
	raw := testenv.Must(base64.StdEncoding.DecodeString(key.String()))(t)
	raw[5] ^= 1
	return base64.StdEncoding.EncodeToString(raw)
}

func TestReleaseKeysComeFromTheLinker(t *testing.T) {
	defer func() { releaseKeys = "" }()
	named := publicKeys(t, 2, 1, 2, 3).Named()
	releaseKeys = "2," + strings.Join(named.Keys, ",")
	trusted, err := Trust("/nothing/here")
	testenv.NoError(t, err)
	testenv.True(t, trusted.Release.Threshold == 2 && len(trusted.Release.Public) == 3, "%+v", trusted)
	for _, wrong := range []string{"4," + strings.Join(named.Keys, ","), strings.Join(named.Keys, ","), "1,RWQ"} {
		releaseKeys = wrong
		_, err := Trust("/nothing/here")
		testenv.WantError(t, err, "the release keys that this program was built with cannot be read")
	}
}

// TestMinisignVerifiesIndex: a user checks a bundle with minisign(1) before anything of it runs.
func TestMinisignVerifiesIndex(t *testing.T) {
	program, err := exec.LookPath("minisign")
	if err != nil {
		testenv.Missing(t, testenv.Minisign, "it checks a signature as users do")
	}
	o := small(t)
	dir := filepath.Dir(o.Out)
	command := func(args ...string) (string, error) {
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := command("-G", "-W", "-p", "own.pub", "-s", "own.key")
	testenv.NoError(t, err, out)
	private := testenv.Must(ReadPrivateKey(filepath.Join(dir, "own.key"), nil))(t)
	made(t, o)
	id := testenv.Must(Sign(t.Context(), o.Out, private))(t)
	cmd := exec.Command("tar", "-xf", o.Out)
	cmd.Dir = dir
	testenv.NoError(t, cmd.Run(), "tar -xf")
	out, err = command("-Vm", "index.json", "-x", "index.json."+id+".minisig", "-p", "own.pub")
	testenv.NoError(t, err, out)
	testenv.Contains(t, out, "bundle spring, counter 5", "the trusted comment:")
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), []byte("{}"), 0o644))
	out, err = command("-Vm", "index.json", "-x", "index.json."+id+".minisig", "-p", "own.pub")
	testenv.True(t, err != nil, "another index was accepted: %s", out)
	trusted, err := Trust(filepath.Join(dir, "own.pub"))
	testenv.NoError(t, err)
	_, err = opened(t, testenv.Must(os.ReadFile(o.Out))(t)).Verify(trusted)
	testenv.NoError(t, err)
}

// TestContainerdsNumbersAreOurs compares the numbers in the facts with the module's source.
func TestContainerdsNumbersAreOurs(t *testing.T) {
	dir := strings.TrimSpace(string(testenv.Must(exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/containerd/containerd/v2").Output())(t)))
	constants := func(file string) map[string]string {
		out := map[string]string{}
		f := testenv.Must(parser.ParseFile(token.NewFileSet(), filepath.Join(dir, file), nil, 0))(t)
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
				if value, ok := spec.Values[0].(*ast.BasicLit); ok {
					out[spec.Names[0].Name] = value.Value
				}
			}
			return true
		})
		return out
	}
	db, sh := constants("core/metadata/db.go"), constants("core/runtime/v2/shim.go")
	testenv.Equal(t, strings.Trim(db["schemaVersion"], `"`)+"."+db["dbVersion"], containerdDB, "containerd's database:")
	testenv.Equal(t, sh["CurrentShimVersion"], fmt.Sprint(shim), "the shims:")
}

// FuzzOpen: what is accepted can be written again, and gives the same bytes. An index has a header that fits it, so
// that its length can change; what stands behind it is any bytes.
func FuzzOpen(f *testing.F) {
	o := small(f)
	add := func(data []byte) {
		b := opened(f, data)
		f.Add(b.raw, data[block+padded(int64(len(b.raw))):], false)
		f.Add(data, []byte(nil), true)
	}
	add(made(f, o))
	add(signed(f, o, 1, 2))
	o.Keys = publicKeys(f, 1, 1, 2).Named()
	add(signed(f, o, 1))
	add(made(f, contents(f, f.TempDir())))
	f.Fuzz(func(t *testing.T, index, rest []byte, raw bool) {
		data := index
		if !raw {
			var head bytes.Buffer
			testenv.NoError(t, writeBytes(&head, "index.json", index))
			data = append(head.Bytes(), rest...)
		}
		b, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		_, _ = b.Verify(Trusted{Release: publicKeys(t, 1, 1, 2)})
		_ = b.Index.Suits(Machine{Architecture: "amd64"})
		if b.CheckBlobs(t.Context()) != nil {
			return
		}
		var again bytes.Buffer
		testenv.NoError(t, write(t.Context(), &again, b.raw, b.signatures, b.Index.Contents.Blobs, func(blob Blob) (io.ReadCloser, error) {
			r, err := b.Blob(blob.Digest)
			return io.NopCloser(r), err
		}))
		testenv.True(t, bytes.Equal(again.Bytes(), data), "it is written in another way")
	})
}
