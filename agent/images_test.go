// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/klauspost/compress/zstd"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/agent/images"
	"github.com/coracle-k8s/coracle/agent/registries"
	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testImage is a one-layer image as a registry and an OCI layout hold it.
type testImage struct{ manifest, config, layer []byte }

func makeImage(t *testing.T, text, arch string) testImage {
	t.Helper()
	var b bytes.Buffer
	im := imagetar.Image{Name: "x:1", Architecture: arch, Entrypoint: []string{"/x"}, Files: []imagetar.File{{Path: "/x", Body: []byte(text)}}}
	testenv.NoError(t, imagetar.Write(&b, im))
	var out testImage
	for name, data := range untar(t, b.Bytes()) {
		switch {
		case strings.HasSuffix(name, "layer.tar"):
			out.layer = data
		case name != "manifest.json":
			out.config = data
		}
	}
	out.manifest = encode(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": descriptor("application/vnd.oci.image.config.v1+json", out.config),
		"layers": []any{descriptor("application/vnd.oci.image.layer.v1.tar", out.layer)},
	})
	return out
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func descriptor(mediaType string, data []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest(data), "size": len(data)}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	return testenv.Must(json.Marshal(v))(t)
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		testenv.NoError(t, err)
		out[h.Name], err = io.ReadAll(tr)
		testenv.NoError(t, err)
	}
}

// layout packs the image as an OCI layout under the reference.
func (im testImage) layout(t *testing.T, ref string) []byte {
	t.Helper()
	d := descriptor("application/vnd.oci.image.manifest.v1+json", im.manifest)
	d["annotations"] = map[string]string{"org.opencontainers.image.ref.name": ref}
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": encode(t, map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []any{d}}),
	}
	for _, blob := range [][]byte{im.manifest, im.config, im.layer} {
		files["blobs/sha256/"+strings.TrimPrefix(digest(blob), "sha256:")] = blob
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, data := range files {
		testenv.NoError(t, tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}))
		testenv.Must(tw.Write(data))(t)
	}
	testenv.NoError(t, tw.Close())
	return b.Bytes()
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	testenv.Must(w.Write(data))(t)
	testenv.NoError(t, w.Close())
	return b.Bytes()
}

func zstandard(t *testing.T, data []byte) []byte {
	t.Helper()
	w := testenv.Must(zstd.NewWriter(nil))(t)
	return w.EncodeAll(data, nil)
}

// has says whether the runtime would run the image, and whether the kubelet's garbage collection leaves it alone.
func (n *node) has(name string) (present, pinned bool) {
	n.t.Helper()
	resp := testenv.Must(n.images.ImageStatus(context.Background(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}}))(n.t)
	return resp.Image != nil, resp.Image.GetPinned()
}

// imported says whether the node knows of an image that it came from an archive.
func (n *node) imported(im testImage) bool {
	n.t.Helper()
	c := testenv.Must(client.New(runtimeOptions(n.dir).Address()))(n.t)
	defer c.Close()
	return images.Containerd{Client: c, Namespace: containerd.Namespace}.Imported(n.t.Context(), digest(im.config))
}

// TestImagesFromArchivesAndMirrors imports each form of archive, none of which may be kept out by a bad one, and pulls
// from a mirror that wants a password, with and without a rewritten name.
func TestImagesFromArchivesAndMirrors(t *testing.T) {
	n := newNode(t)
	n.archive("aa-not-an-archive.tar", []byte("rubbish"))
	n.archive("ab-cut-off.tar.gz", gzipped(t, makeImage(t, "cut", "").layout(t, "example.org/cut:1"))[:400])
	n.archive("ac-foreign.tar", makeImage(t, "foreign", "s390x").layout(t, "example.org/foreign:1"))
	n.archive("layout.tar.gz", gzipped(t, makeImage(t, "one", "").layout(t, "example.org/one:1")))
	n.archive("tagged.tar.zst", zstandard(t, makeImage(t, "two", "").layout(t, "v2")))
	pulled := makeImage(t, "three", "")
	registry := httptest.NewServer(&fakeRegistry{image: pulled, names: []string{"plain/app", "cache/app"}})
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "http://")
	config := fmt.Sprintf(`
mirrors:
  plain.example.org: {endpoint: ["http://%[1]s"]}
  rewritten.example.org: {endpoint: ["http://%[1]s"], rewrite: {"^team/(.*)": "cache/$1"}}
configs:
  "%[1]s": {auth: {username: user, password: word}}
`, host)
	testenv.NoError(t, os.WriteFile(filepath.Join(n.dir, "registries.yaml"), []byte(config), 0o600))
	n.start()

	for name, want := range map[string]bool{
		"docker.io/library/chat:1": true, "example.org/one:1": true, "docker.io/library/tagged:v2": true,
		"example.org/cut:1":     false,
		"example.org/foreign:1": true, // with a warning: there may be an emulator
	} {
		present, pinned := n.has(name)
		testenv.False(t, present != want || pinned != want, "%s: present %t, pinned %t, want %t", name, present, pinned, want)
	}
	n.unpins("example.org/one:1", "layout.tar.gz")
	for _, name := range []string{"plain.example.org/plain/app:1", "rewritten.example.org/team/app:1"} {
		if _, err := n.images.PullImage(context.Background(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}}); err != nil {
			t.Errorf("pull %s: %v", name, err)
		} else if present, pinned := n.has(name); !present || pinned {
			t.Errorf("%s after its pull: present %t, pinned %t", name, present, pinned)
		}
	}
	if !n.imported(makeImage(t, "one", "")) || n.imported(pulled) {
		t.Errorf("imported: %t, pulled, but taken for imported: %t", n.imported(makeImage(t, "one", "")), n.imported(pulled))
	}

	// A changed archive under the same name replaces the image; one that was there before is not imported again.
	n.signal(os.Interrupt)
	n.archive("layout.tar.gz", gzipped(t, makeImage(t, "changed", "").layout(t, "example.org/one:1")))
	n.start()
	resp := testenv.Must(
		n.images.ImageStatus(context.Background(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "example.org/one:1"}}))(t)
	testenv.Equal(t, resp.Image.GetId(), digest(makeImage(t, "changed", "").config), "the changed archive's image is")
	testenv.True(t, resp.Image.GetPinned(), "the image of an archive that is there again is not pinned")
}

// unpins takes the pin of an image that came from an archive. The kubelet then sees an image like others.
func (n *node) unpins(name, archive string) {
	n.t.Helper()
	c := testenv.Must(client.New(runtimeOptions(n.dir).Address()))(n.t)
	defer c.Close()
	store := images.Containerd{Client: c, Namespace: containerd.Namespace}
	pinned := testenv.Must(store.Pinned(n.t.Context()))(n.t)
	if from, ok := pinned[name]; !ok || from.Archive != archive || from.Device == 0 {
		n.t.Errorf("%s: pinned %t, its origin is %+v, want %s", name, ok, from, archive)
	}
	testenv.NoError(n.t, store.Unpin(n.t.Context(), name))
	testenv.Until(n.t, 2*time.Minute, "the kubelet may collect "+name, func() bool {
		present, pinned := n.has(name)
		return present && !pinned
	})
	testenv.NoError(n.t, store.Unpin(n.t.Context(), "example.org/none:1"))
	_, still := testenv.Must(store.Pinned(n.t.Context()))(n.t)[name]
	testenv.False(n.t, still, "%s is pinned still", name)
}

// TestLostContentComesAgain takes the files of content away, as a dying disk does, while the records say that they are
// there. What came from archives is imported again. The rest is no image for the kubelet, so that it pulls it.
func TestLostContentComesAgain(t *testing.T) {
	n := newNode(t)
	one, pulled := makeImage(t, "one", ""), makeImage(t, "pulled", "")
	n.archive("one.tar", one.layout(t, "example.org/one:1"))
	registry := httptest.NewServer(&fakeRegistry{image: pulled, names: []string{"app"}})
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "http://")
	config := fmt.Sprintf("mirrors: {example.net: {endpoint: [%q]}}\nconfigs: {%q: {auth: {username: user, password: word}}}\n", registry.URL, host)
	testenv.NoError(t, os.WriteFile(filepath.Join(n.dir, "registries.yaml"), []byte(config), 0o600))
	pull := func(t *testing.T) {
		t.Helper()
		_, err := n.images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "example.net/app:1"}})
		testenv.NoError(t, err, "pull")
	}
	n.start()
	pull(t)
	file := func(data []byte) string { return strings.TrimPrefix(digest(data), "sha256:") }
	for _, lost := range []struct {
		what, files string
		pull        bool // the pulled image cannot run any more
	}{
		{"a layer", file(one.layer), false},
		{"a pulled layer", file(pulled.layer), false}, // it is unpacked, and is not fetched again
		{"a configuration", file(pulled.config), true},
		{"everything", "*", true},
	} {
		t.Run(lost.what, func(t *testing.T) {
			n.signal(os.Kill)
			blobs := filepath.Join(runtimeOptions(n.dir).Root, "io.containerd.content.v1.content/blobs/sha256")
			files := testenv.Must(filepath.Glob(filepath.Join(blobs, lost.files)))(t)
			testenv.Require(t, len(files) > 0, "there is no content to lose")
			for _, f := range files {
				testenv.NoError(t, os.Remove(f))
			}
			n.start()
			for _, name := range []string{chatImage, "example.org/one:1"} {
				present, pinned := n.has(name)
				testenv.True(t, present && pinned, "%s is there: %t, pinned: %t", name, present, pinned)
			}
			present, _ := n.has("example.net/app:1")
			testenv.Equal(t, present, !lost.pull, "the pulled image is there:")
			if !present {
				pull(t)
			}
			for _, data := range [][]byte{one.manifest, one.config, one.layer, pulled.manifest, pulled.config} {
				testenv.Check(t, testenv.Err(os.Stat(filepath.Join(blobs, file(data)))), "content that was lost")
			}
		})
	}
	n.pod()
	n.container("runs", "burst", "1", "0")
}

// TestCredentialsForAnyHost pulls with the credentials of the entry "*" from a mirror, from one with rewrites, and from
// a registry that the file does not name. A host's own entry goes before.
func TestCredentialsForAnyHost(t *testing.T) {
	n := newNode(t)
	registry := httptest.NewServer(&fakeRegistry{image: makeImage(t, "three", ""), names: []string{"plain/app", "cache/app"}})
	defer registry.Close()
	other := httptest.NewServer(registry.Config.Handler) // another host, with an entry of its own
	defer other.Close()
	host, own := strings.TrimPrefix(registry.URL, "http://"), strings.TrimPrefix(other.URL, "http://")
	config := fmt.Sprintf(`
mirrors:
  plain.example.org: {endpoint: ["http://%[1]s"]}
  rewritten.example.org: {endpoint: ["http://%[1]s"], rewrite: {"^team/(.*)": "cache/$1"}}
  own.example.org: {endpoint: ["http://%[2]s"], rewrite: {"^team/(.*)": "cache/$1"}}
configs:
  "*": {auth: {username: user, password: word}}
  "%[2]s": {auth: {username: user, password: another}}
`, host, own)
	path := filepath.Join(n.dir, "registries.yaml")
	testenv.NoError(t, os.WriteFile(path, []byte(config), 0o600))
	n.start()
	auth := agent.PullAuth(testenv.Must(registries.Load(path))(t))
	for name, want := range map[string]bool{
		"plain.example.org/plain/app:1": true, "rewritten.example.org/team/app:1": true, host + "/plain/app:1": true,
		"own.example.org/team/app:1": false, own + "/plain/app:1": false,
	} {
		_, err := n.images.PullImage(context.Background(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}, Auth: auth(name)})
		testenv.Equal(t, err == nil, want, "%s is pulled (%v):", name, err)
	}
}

// fakeRegistry serves one image under some names, to one user (OCI distribution specification).
type fakeRegistry struct {
	image testImage
	names []string
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if user, password, _ := r.BasicAuth(); user != "user" || password != "word" {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	for _, name := range f.names {
		rest, ok := strings.CutPrefix(r.URL.Path, "/v2/"+name+"/")
		if !ok {
			continue
		}
		for path, data := range map[string][]byte{
			"manifests/1": f.image.manifest, "manifests/" + digest(f.image.manifest): f.image.manifest,
			"blobs/" + digest(f.image.config): f.image.config, "blobs/" + digest(f.image.layer): f.image.layer,
		} {
			if rest == path {
				if strings.HasPrefix(path, "manifests/") {
					w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				}
				w.Header().Set("Docker-Content-Digest", digest(data))
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data)
				return
			}
		}
	}
	http.NotFound(w, r)
}
