// SPDX-License-Identifier: Apache-2.0

package imagetar_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestWrittenImageHasLayersAndConfig(t *testing.T) {
	src := filepath.Join(t.TempDir(), "prog")
	testenv.NoError(t, os.WriteFile(src, []byte("program"), 0o600))
	im := imagetar.Image{
		Name: "example.test/a:1", Entrypoint: []string{"/bin/prog"}, Cmd: []string{"x"}, Env: []string{"A=b"}, User: "65535",
		Files: []imagetar.File{
			{Path: "/bin/prog", Mode: 0o755, Source: src},
			{Path: "bin/alias", Link: "prog"},
			{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
			{Path: "/etc/deep/file", Body: []byte("hello"), UID: 7, GID: 8},
		},
	}
	var out bytes.Buffer
	testenv.NoError(t, imagetar.Write(&out, im))
	files := untar(t, out.Bytes())

	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	testenv.NoError(t, json.Unmarshal(files["manifest.json"].body, &manifest))
	if len(manifest) != 1 || !reflect.DeepEqual(manifest[0].RepoTags, []string{"example.test/a:1"}) || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest: %+v", manifest)
	}
	layer := files[manifest[0].Layers[0]].body
	var config struct {
		OS     string
		Config struct{ Entrypoint, Cmd, Env []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	testenv.NoError(t, json.Unmarshal(files[manifest[0].Config].body, &config))
	sum := sha256.Sum256(layer)
	if want := []string{"sha256:" + hex.EncodeToString(sum[:])}; !reflect.DeepEqual(config.RootFS.DiffIDs, want) {
		t.Errorf("diff ids %v, want %v", config.RootFS.DiffIDs, want)
	}
	testenv.False(t, config.OS != "linux" || !reflect.DeepEqual(config.Config.Entrypoint, im.Entrypoint), "config: %+v", config)

	content := untar(t, layer)
	if got := content["bin/prog"]; string(got.body) != "program" || got.head.Mode != 0o755 {
		t.Errorf("bin/prog: %q mode %o", got.body, got.head.Mode)
	}
	testenv.True(t, content["bin/alias"].head.Typeflag == tar.TypeSymlink && content["bin/alias"].head.Linkname == "prog",
		"bin/alias: %+v", content["bin/alias"].head)
	testenv.Equal(t, content["tmp/"].head.Mode, 0o1777, "tmp mode")
	if got := content["etc/deep/"].head; got == nil || got.Typeflag != tar.TypeDir {
		t.Errorf("the missing parent etc/deep was not added: %+v", got)
	}
	if got := content["etc/deep/file"].head; got.Uid != 7 || got.Gid != 8 {
		t.Errorf("owner: %d:%d", got.Uid, got.Gid)
	}
}

func TestWriteIsDeterministic(t *testing.T) {
	files := []imagetar.File{{Path: "/b", Body: []byte("b")}, {Path: "/a/x", Body: []byte("x")}, {Path: "/a/y", Body: []byte("y")}}
	reversed := []imagetar.File{files[2], files[1], files[0]}
	var one, two bytes.Buffer
	testenv.NoError(t, imagetar.Write(&one, imagetar.Image{Name: "t/x:1", Files: files}))
	testenv.NoError(t, imagetar.Write(&two, imagetar.Image{Name: "t/x:1", Files: reversed}))
	testenv.True(t, bytes.Equal(one.Bytes(), two.Bytes()), "the order of files changed the archive")
}

func TestBadImagesAreNotWritten(t *testing.T) {
	for name, tc := range map[string]struct {
		images []imagetar.Image
		want   string
	}{
		"none":      {nil, "no image"},
		"no tag":    {[]imagetar.Image{{Name: "hello"}}, "needs a tag"},
		"twice":     {[]imagetar.Image{{Name: "a:1", Files: []imagetar.File{{Path: "/x"}, {Path: "x"}}}}, "listed twice"},
		"root":      {[]imagetar.Image{{Name: "a:1", Files: []imagetar.File{{Path: "/"}}}}, "names the root"},
		"no source": {[]imagetar.Image{{Name: "a:1", Files: []imagetar.File{{Path: "/x", Source: "/does/not/exist"}}}}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			err := imagetar.Write(io.Discard, tc.images...)
			testenv.WantError(t, err, tc.want)
		})
	}
}

type entry struct {
	head *tar.Header
	body []byte
}

func untar(t *testing.T, data []byte) map[string]entry {
	t.Helper()
	out := map[string]entry{}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		testenv.NoError(t, err)
		body := testenv.Must(io.ReadAll(tr))(t)
		out[h.Name] = entry{h, body}
	}
}
