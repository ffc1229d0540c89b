// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestForeignLayersAreRefused: an archive holds the configuration of a tenant's image, and as many layers as it names.
// It makes the image everybody's only where these layers hold what the configuration says: unpacking applies none of
// them, since the snapshots that the configuration names are on the node.
func TestForeignLayersAreRefused(t *testing.T) {
	p := makeImageBlobs(t)
	stored := func(level int, plain []byte) []byte {
		var b bytes.Buffer
		w, err := gzip.NewWriterLevel(&b, level)
		if err == nil {
			_, err = w.Write(plain)
		}
		if err == nil {
			err = w.Close()
		}
		testenv.NoError(t, err)
		return b.Bytes()
	}
	garbage, otherTar := []byte("nothing at all"), archive(t, map[string][]byte{"etc/other": []byte("not a tenant's")})
	const gzipped, plain, docker = ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayer, images.MediaTypeDockerSchema2Layer
	for name, c := range map[string]struct {
		mediaType string
		layers    [][]byte
		recorded  string // of the first layer by its label, as written when it was unpacked
		refused   bool
	}{
		"garbage":                              {mediaType: gzipped, layers: [][]byte{garbage}, refused: true},
		"garbage, uncompressed":                {mediaType: plain, layers: [][]byte{garbage}, refused: true},
		"nothing":                              {mediaType: gzipped, layers: [][]byte{{}}, refused: true},
		"another layer":                        {mediaType: gzipped, layers: [][]byte{stored(gzip.BestSpeed, otherTar)}, refused: true},
		"another layer that was unpacked":      {mediaType: gzipped, layers: [][]byte{stored(gzip.BestSpeed, otherTar)}, recorded: digest.FromBytes(otherTar).String(), refused: true},
		"the layer cut off":                    {mediaType: gzipped, layers: [][]byte{p.layer[:len(p.layer)-9]}, refused: true},
		"no layer":                             {mediaType: gzipped, refused: true},
		"one too many":                         {mediaType: gzipped, layers: [][]byte{p.layer, p.layer}, refused: true},
		"no layers by their type":              {mediaType: "application/vnd.example", layers: [][]byte{garbage}, refused: true},
		"the layer":                            {mediaType: gzipped, layers: [][]byte{p.layer}},
		"the layer, compressed otherwise":      {mediaType: gzipped, layers: [][]byte{stored(gzip.NoCompression, p.plain)}},
		"the layer, uncompressed":              {mediaType: plain, layers: [][]byte{p.plain}},
		"compressed, and its type knows not":   {mediaType: docker, layers: [][]byte{stored(gzip.HuffmanOnly, p.plain)}},
		"compressed, and its type is mistaken": {mediaType: gzipped, layers: [][]byte{p.plain}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, s := blobStore(t)
			put := func(data []byte, opts ...content.Opt) {
				t.Helper()
				d := descriptorOf("", data)
				testenv.NoError(t,
					content.WriteBlob(ctx, s.Client.ContentStore(), "pulled-"+d.Digest.String(), bytes.NewReader(data), d, opts...))
			}
			put(p.manifest)
			put(p.config)
			put(p.layer, content.WithLabels(map[string]string{labels.LabelUncompressed: digest.FromBytes(p.plain).String()}))
			var m ocispec.Manifest
			testenv.NoError(t, json.Unmarshal(p.manifest, &m))
			m.Layers = nil
			q := p
			files := map[string][]byte{digest.FromBytes(p.config).Encoded(): p.config}
			for i, layer := range c.layers {
				m.Layers = append(m.Layers, descriptorOf(c.mediaType, layer))
				files[digest.FromBytes(layer).Encoded()] = layer
				if i == 0 && c.recorded != "" {
					put(layer, content.WithLabels(map[string]string{labels.LabelUncompressed: c.recorded}))
				}
			}
			q.manifest = encode(t, m)
			q.descriptor = descriptorOf(ocispec.MediaTypeImageManifest, q.manifest)
			files[digest.FromBytes(q.manifest).Encoded()] = q.manifest
			imported, blobs, err := s.read(ctx, bytes.NewReader(q.layout(t, files)), "docker.io/library/private", Origin{}, s.Client.ImageService())
			testenv.Require(t, err == nil && len(imported) == 1, "imported %v: %v", imported, err)
			err = s.label(ctx, imported[0], blobs)
			if refused := errors.Is(err, errOtherLayer); refused != c.refused || err != nil && !refused {
				t.Errorf("the archive's layers: %v", err)
			}
			if is := s.Imported(ctx, digest.FromBytes(p.config).String()); is == c.refused {
				t.Errorf("it is for every pod: %v", is)
			}
		})
	}
}
