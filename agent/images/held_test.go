// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// blobStore is containerd's own store of content and names, without the rest of containerd.
func blobStore(t *testing.T) (context.Context, Containerd) {
	t.Helper()
	ctx, s, _ := collectedStore(t)
	return ctx, s
}

// collectedStore is a store that collects unreferenced content on request.
func collectedStore(t *testing.T) (context.Context, Containerd, *metadata.DB) {
	t.Helper()
	dir := t.TempDir()
	blobs := testenv.Must(local.NewStore(dir))(t)
	file := testenv.Must(bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil))(t)
	t.Cleanup(func() { _ = file.Close() })
	db := metadata.NewDB(file, blobs, nil)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	testenv.NoError(t, db.Init(ctx))
	c, err := client.New("", client.WithServices(client.WithContentStore(db.ContentStore()), client.WithImageStore(metadata.NewImageStore(db)),
		client.WithLeasesService(metadata.NewLeaseManager(db))))
	testenv.NoError(t, err)
	return ctx, Containerd{Client: c, Namespace: "test"}, db
}

// imageBlobs are an image of one layer.
type imageBlobs struct {
	manifest, config, layer, plain []byte
	descriptor                     ocispec.Descriptor
}

func descriptorOf(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func makeImageBlobs(t *testing.T) imageBlobs {
	t.Helper()
	p := imageBlobs{plain: archive(t, map[string][]byte{"etc/secret": []byte("a tenant's")})}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	testenv.Must(w.Write(p.plain))(t)
	testenv.NoError(t, w.Close())
	p.layer = b.Bytes()
	p.config = encode(t, ocispec.Image{Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(p.plain)}}})
	p.manifest = encode(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: descriptorOf(ocispec.MediaTypeImageConfig, p.config), Layers: []ocispec.Descriptor{descriptorOf(ocispec.MediaTypeImageLayerGzip, p.layer)}})
	p.descriptor = descriptorOf(ocispec.MediaTypeImageManifest, p.manifest)
	return p
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	return testenv.Must(json.Marshal(v))(t)
}

func archive(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, data := range files {
		testenv.NoError(t, tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}))
		testenv.Must(tw.Write(data))(t)
	}
	testenv.NoError(t, tw.Close())
	return b.Bytes()
}

// layout is an OCI layout with some of an image's blobs, by the names that they have in it.
func (p imageBlobs) layout(t *testing.T, blobs map[string][]byte) []byte {
	t.Helper()
	d := p.descriptor
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "example.org/private:1"}
	files := map[string][]byte{
		ocispec.ImageLayoutFile: encode(t, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}),
		ocispec.ImageIndexFile:  encode(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{d}}),
	}
	for name, data := range blobs {
		files["blobs/sha256/"+name] = data
	}
	return archive(t, files)
}

// TestOnlyWhatTheArchiveHeldIsImported: an image that a tenant pulled to the node is everybody's only after an archive
// that holds its configuration and all its layers.
func TestOnlyWhatTheArchiveHeldIsImported(t *testing.T) {
	p := makeImageBlobs(t)
	name := func(data []byte) string { return digest.FromBytes(data).Encoded() }
	m, c, l := name(p.manifest), name(p.config), name(p.layer)
	docker := archive(t, map[string][]byte{"config.json": p.config, "layer.tar": p.plain,
		"manifest.json": encode(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{"example.org/private:1"}, "Layers": []string{"layer.tar"}}})})
	for what, test := range map[string]struct {
		archive []byte
		want    bool
	}{
		"the manifest alone":            {p.layout(t, map[string][]byte{m: p.manifest}), false},
		"no layer":                      {p.layout(t, map[string][]byte{m: p.manifest, c: p.config}), false},
		"no configuration":              {p.layout(t, map[string][]byte{m: p.manifest, l: p.layer}), false},
		"something by the layer's name": {p.layout(t, map[string][]byte{m: p.manifest, c: p.config, l: []byte("nothing")}), false},
		"all of it":                     {p.layout(t, map[string][]byte{m: p.manifest, c: p.config, l: p.layer}), true},
		"all of it, the layer without compression": {docker, true},
	} {
		t.Run(what, func(t *testing.T) {
			ctx, s := blobStore(t)
			for _, data := range [][]byte{p.manifest, p.config, p.layer} { // it was pulled before
				opts := []content.Opt{}
				if bytes.Equal(data, p.layer) {
					opts = append(opts, content.WithLabels(map[string]string{labels.LabelUncompressed: digest.FromBytes(p.plain).String()}))
				}
				d := descriptorOf("", data)
				if err := content.WriteBlob(ctx, s.Client.ContentStore(), "pulled-"+d.Digest.String(), bytes.NewReader(data), d, opts...); err != nil && !errdefs.IsAlreadyExists(err) {
					t.Fatal(err)
				}
			}
			imported, blobs, err := s.read(ctx, bytes.NewReader(test.archive), "docker.io/library/private", Origin{}, s.Client.ImageService())
			testenv.Require(t, err == nil && len(imported) == 1, "imported %v: %v", imported, err)
			testenv.NoError(t, s.label(ctx, imported[0], blobs))
			testenv.Equal(t, s.Imported(ctx, digest.FromBytes(p.config).String()), test.want, "it is for every pod:")
		})
	}
}
