// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// useless is an archive whose images, of these names, lack all but their manifests.
func useless(t *testing.T, names ...string) []byte {
	t.Helper()
	files := map[string][]byte{ocispec.ImageLayoutFile: encode(t, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for _, name := range names {
		m := encode(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: descriptorOf(ocispec.MediaTypeImageConfig, []byte("the configuration of "+name)), Layers: []ocispec.Descriptor{}})
		d := descriptorOf(ocispec.MediaTypeImageManifest, m)
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		index.Manifests, files["blobs/sha256/"+d.Digest.Encoded()] = append(index.Manifests, d), m
	}
	files[ocispec.ImageIndexFile] = encode(t, index)
	return archive(t, files)
}

// stored is an image that the node has, as a pull leaves it.
func stored(ctx context.Context, t *testing.T, s Containerd, name string) images.Image {
	t.Helper()
	p := makeImageBlobs(t)
	for _, data := range [][]byte{p.layer, p.config, p.manifest} {
		d := descriptorOf("", data)
		opts := []content.Opt{content.WithLabels(map[string]string{"containerd.io/gc.root": "until it has a name"})}
		if err := content.WriteBlob(ctx, s.Client.ContentStore(), "pulled-"+d.Digest.String(), bytes.NewReader(data), d, opts...); err != nil && !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	testenv.NoError(t,
		images.Dispatch(ctx, images.SetChildrenLabels(s.Client.ContentStore(),
			images.ChildrenHandler(s.Client.ContentStore())), nil, p.descriptor))
	im := testenv.Must(
		s.Client.ImageService().Create(ctx, images.Image{Name: name, Target: p.descriptor, Labels: map[string]string{"whose": "a tenant's"}}))(t)
	for _, data := range [][]byte{p.layer, p.config, p.manifest} {
		info := content.Info{Digest: digest.FromBytes(data), Labels: map[string]string{"containerd.io/gc.root": ""}}
		testenv.Must(s.Client.ContentStore().Update(ctx, info, "labels.containerd.io/gc.root"))(t)
	}
	return im
}

// TestUselessArchiveTakesNoName: an archive with an image that cannot be used leaves all names as they were, also those
// of images behind that one, and what they name.
func TestUselessArchiveTakesNoName(t *testing.T) {
	const old, second, fresh = "example.org/app:1", "example.org/db:1", "example.org/new:1"
	for what, archive := range map[string][]byte{
		"names that are there first": useless(t, old, second, fresh),
		"a new name first":           useless(t, fresh, old, second),
		"a name twice":               useless(t, old, second, old, fresh),
	} {
		t.Run(what, func(t *testing.T) {
			ctx, s, db := collectedStore(t)
			was := map[string]images.Image{old: stored(ctx, t, s, old), second: stored(ctx, t, s, second)}
			asBefore := func() {
				t.Helper()
				testenv.Check(t, testenv.Err(db.GarbageCollect(ctx)))
				for name, before := range was {
					now, err := s.Client.ImageService().Get(ctx, name)
					if err != nil || now.Target.Digest != before.Target.Digest || now.Labels["whose"] != before.Labels["whose"] || now.Labels[pinnedLabel] != "" {
						t.Errorf("%s is %v with the labels %v: %v", name, now.Target.Digest, now.Labels, err)
					}
				}
				for _, data := range [][]byte{makeImageBlobs(t).layer, makeImageBlobs(t).config, makeImageBlobs(t).manifest} {
					testenv.Check(t, testenv.Err(s.Client.ContentStore().Info(ctx, digest.FromBytes(data))))
				}
				if im, err := s.Client.ImageService().Get(ctx, fresh); !errdefs.IsNotFound(err) {
					t.Errorf("the name that no image had is %v: %v", im.Target.Digest, err)
				}
			}
			if names, err := s.Import(ctx, bytes.NewReader(archive), "docker.io/library/x", Origin{}); err == nil || len(names) > 0 {
				t.Fatalf("imported %v: %v", names, err)
			}
			asBefore()

			// Content without a name is collected in between.
			leased, done, err := s.Client.WithLease(ctx)
			testenv.NoError(t, err)
			w := newWrittenNames(s.Client)
			if _, _, err := s.read(leased, bytes.NewReader(archive), "docker.io/library/x", Origin{}, w); err != nil {
				t.Fatal(err)
			}
			testenv.Must(db.GarbageCollect(ctx))(t)
			if im, err := s.Client.ImageService().Get(ctx, old); err != nil || im.Target.Digest == was[old].Target.Digest {
				t.Fatalf("in between %s is %v, %v: this proves nothing", old, im.Target.Digest, err)
			}
			testenv.Check(t, w.restore(leased))
			testenv.Check(t, done(ctx))
			asBefore()
		})
	}
}

// TestNamesAreThoseOfPods: an archive's names, in either annotation, become the names by which the kubelet asks for
// them.
func TestNamesAreThoseOfPods(t *testing.T) {
	for in, want := range map[string]string{
		"v1":                   "docker.io/library/file:v1",
		"app:v1":               "docker.io/library/app:v1",
		"team/app:v1":          "docker.io/team/app:v1",
		"docker.io/app:v2":     "docker.io/library/app:v2",
		"example.test/notag":   "example.test/notag:latest",
		"localhost/app":        "localhost/app:latest",
		"example.test:5000/x":  "example.test:5000/x:latest",
		"index.docker.io/a/b":  "docker.io/a/b:latest",
		"example.test/full:v1": "example.test/full:v1",
		"Upper/Case:v1":        "Upper/Case:v1",
	} {
		for _, annotation := range []string{ocispec.AnnotationRefName, images.AnnotationImageName} {
			if in == "v1" && annotation != ocispec.AnnotationRefName {
				continue // only the OCI's annotation may have a tag alone
			}
			ctx, s, _ := collectedStore(t)
			p := makeImageBlobs(t)
			d := p.descriptor
			d.Annotations = map[string]string{annotation: in}
			files := map[string][]byte{
				ocispec.ImageLayoutFile: encode(t, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}),
				ocispec.ImageIndexFile:  encode(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{d}}),
			}
			for _, data := range [][]byte{p.layer, p.config, p.manifest} {
				files["blobs/sha256/"+digest.FromBytes(data).Encoded()] = data
			}
			w := newWrittenNames(s.Client)
			got, _, err := s.read(ctx, bytes.NewReader(archive(t, files)), "docker.io/library/file", Origin{}, w)
			if err != nil || len(got) != 1 || got[0].Name != want || w.names[want].target != p.descriptor.Digest {
				t.Errorf("%s in %s is %+v, %v; want %s", in, annotation, got, err, want)
			}
			testenv.Check(t, testenv.Err(s.Client.ImageService().Get(ctx, want)), want)
		}
	}
}

// TestTakenNamesOfOthers: a name that stands for something else by now, as after a pull meanwhile, or that is gone, is
// left as it is. So is that of an image that is ready.
func TestTakenNamesOfOthers(t *testing.T) {
	ctx, s := blobStore(t)
	const pulled, deletedImage, kept = "example.org/pulled:1", "example.org/gone:1", "example.org/kept:1"
	is := s.Client.ImageService()
	put := func(in images.Store, name, target string) images.Image {
		t.Helper()
		im := images.Image{Name: name, Target: descriptorOf(ocispec.MediaTypeImageManifest, []byte(target))}
		out, err := in.Update(ctx, im, "target")
		if errdefs.IsNotFound(err) {
			out, err = in.Create(ctx, im)
		}
		testenv.NoError(t, err)
		return out
	}
	w := newWrittenNames(s.Client)
	for _, name := range []string{pulled, deletedImage, kept} {
		put(is, name, "before")
		ready := put(w, name, "the archive's")
		if name == kept {
			w.markReady(ready)
		}
	}
	put(is, pulled, "pulled")
	testenv.NoError(t, is.Delete(ctx, deletedImage))
	testenv.Check(t, w.restore(ctx))
	for name, want := range map[string]string{pulled: "pulled", deletedImage: "", kept: "the archive's"} {
		if im, err := is.Get(ctx, name); want == "" && !errdefs.IsNotFound(err) || want != "" && im.Target.Digest != digest.FromString(want) {
			t.Errorf("%s is %v, %v", name, im.Target.Digest, err)
		}
	}
}
