//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodepower

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// busybox is where Debian's busybox-static puts it.
const busybox = "/bin/busybox"

// registryHost is the registry of images that are pulled. registries.yaml says where it really is.
const registryHost = "registry.test"

// image has one layer whose files are known: busybox, and 80 files of all sizes in a folder that no other image has.
type image struct {
	name, folder string
	layer        []imagetar.File
	archive      []byte
}

func newImage(t testing.TB, r *rand.Rand, reference string) *image {
	t.Helper()
	im := &image{name: reference, folder: "mark-" + strconv.FormatUint(r.Uint64(), 36)}
	box := testenv.Must(os.ReadFile(busybox))(t)
	im.layer = append(im.layer, imagetar.File{Path: "bin/busybox", Mode: 0o755, Body: box})
	for _, applet := range []string{"sh", "sleep", "sync", "cat", "mv"} {
		im.layer = append(im.layer, imagetar.File{Path: "bin/" + applet, Link: "busybox"})
	}
	for i := range 80 {
		body := make([]byte, []int{10, 3000, 5000, 40000, 300000}[r.IntN(5)]+r.IntN(100))
		for j := range body {
			body[j] = byte(r.Uint32())
		}
		im.layer = append(im.layer, imagetar.File{Path: fmt.Sprintf("%s/f%02d", im.folder, i), Body: body})
	}
	var b bytes.Buffer
	testenv.NoError(t, imagetar.Write(&b, imagetar.Image{Name: reference, Env: []string{"PATH=/bin"}, Files: im.layer}))
	im.archive = b.Bytes()
	return im
}

// put puts the image into a node's images folder, flushed: only what the node makes of it is to be at risk.
func (im *image) put(t testing.TB, folder, file string) {
	t.Helper()
	testenv.NoError(t, os.MkdirAll(folder, 0o755))
	f := testenv.Must(os.Create(filepath.Join(folder, ".part")))(t)
	testenv.Must(f.Write(im.archive))(t)
	testenv.NoError(t, f.Sync())
	testenv.NoError(t, f.Close())
	testenv.NoError(t, os.Rename(f.Name(), filepath.Join(folder, file)))
	dir := testenv.Must(os.Open(folder))(t)
	defer dir.Close()
	testenv.NoError(t, dir.Sync())
}

// differs compares what is unpacked of the image, below containerd's root, with what its layer holds.
func (im *image) differs(root string) error {
	found, err := filepath.Glob(filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs", im.folder))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("%s is not unpacked anywhere below %s (%v)", im.name, root, err)
	}
	for _, folder := range found {
		var bad []string
		for _, f := range im.layer {
			if f.Link != "" {
				continue
			}
			got, err := os.ReadFile(filepath.Join(path.Dir(folder), f.Path))
			if err != nil || !bytes.Equal(got, f.Body) {
				bad = append(bad, fmt.Sprintf("%s (%d of %d bytes, %v)", f.Path, len(got), len(f.Body), err))
			}
		}
		if len(bad) > 0 {
			return fmt.Errorf("%s: %d of its files are damaged in %s: %s", im.name, len(bad), path.Dir(folder), strings.Join(bad[:min(3, len(bad))], ", "))
		}
	}
	return nil
}

// registry serves images outside of the machine, until it goes away.
type registry struct {
	mu      sync.Mutex
	content map[string]blob // by digest, or by tag
	away    bool
}

type blob struct {
	mediaType types.MediaType
	data      []byte
}

// newRegistry serves one on the site's network.
func newRegistry(t testing.TB, site *harness.Site) *registry {
	t.Helper()
	r := &registry{content: map[string]blob{}}
	var listener net.Listener
	testenv.NoError(t, site.Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(harness.OutsideIP, "5000"))
		return err
	}))
	server := &http.Server{Handler: r}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }() // ends with Close
	t.Cleanup(func() { _ = server.Close(); <-done })
	return r
}

// settings are the registries.yaml that leads to it.
func (*registry) settings() string {
	return fmt.Sprintf("mirrors:\n  %s:\n    endpoint: [\"http://%s:5000\"]\n", registryHost, harness.OutsideIP)
}

// add adds an image under the tag of its name.
func (r *registry) add(t testing.TB, im *image) {
	t.Helper()
	tag := testenv.Must(name.NewTag(im.name))(t)
	packed := testenv.Must(tarball.Image(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(im.archive)), nil
	}, &tag))(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, layer := range testenv.Must(packed.Layers())(t) {
		data := testenv.Must(io.ReadAll(testenv.Must(layer.Compressed())(t)))(t)
		r.content[testenv.Must(layer.Digest())(t).String()] = blob{data: data}
	}
	r.content[testenv.Must(packed.ConfigName())(t).String()] = blob{data: testenv.Must(packed.RawConfigFile())(t)}
	manifest := blob{testenv.Must(packed.MediaType())(t), testenv.Must(packed.RawManifest())(t)}
	r.content[tag.TagStr()], r.content[testenv.Must(packed.Digest())(t).String()] = manifest, manifest
}

// setAway makes the registry close every connection without a response, or serve again.
func (r *registry) setAway(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

// ServeHTTP implements http.Handler (OCI distribution specification).
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		panic(http.ErrAbortHandler)
	}
	b, found := r.content[path.Base(q.URL.Path)]
	if !found && q.URL.Path != "/v2/" {
		http.NotFound(w, q)
		return
	}
	if b.mediaType != "" {
		w.Header().Set("Content-Type", string(b.mediaType))
	}
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(b.data))
}
