// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// mirrorAddress is where the mirror answers: the site's own end of its network, where machines are too.
const mirrorAddress = "10.77.0.1:5000"

// mirrorSettings sends every registry's pulls to the mirror.
const mirrorSettings = "mirrors:\n  \"*\":\n    endpoint: [\"http://" + mirrorAddress + "\"]\n"

// serveMirror answers pulls of the archive's images on the site's network until the run ends, and returns the file of
// settings that sends a node there. Specs whose pods have the pull policy Always need it; and while a pull of an image
// goes on without an end, the kubelet starts no other pod with that image.
func serveMirror(t testing.TB, site *harness.Site, folder, archive string, images []imagetar.Image) string {
	blobs, err := os.MkdirTemp(folder, "mirror-")
	testenv.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(blobs) })
	handler := registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)), registry.Logger(log.New(io.Discard, "", 0)))
	for _, image := range images {
		testenv.NoError(t, push(handler, archive, image.Name))
	}
	var listener net.Listener
	err = site.Do(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", mirrorAddress)
		return err
	})
	testenv.NoError(t, err, "listen for pulls")
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }() // ends with Close
	t.Cleanup(func() { _ = server.Close(); <-done })
	settings := filepath.Join(folder, "registries.yaml")
	testenv.NoError(t, os.WriteFile(settings, []byte(mirrorSettings), 0o644))
	return settings
}

// push puts an image of the archive into a registry under its name without the registry's.
func push(handler http.Handler, archive, reference string) error {
	tag, err := name.NewTag(reference)
	if err != nil {
		return fmt.Errorf("read the image's name %s: %w", reference, err)
	}
	image, err := tarball.ImageFromPath(archive, &tag)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", reference, archive, err)
	}
	_, repository, _ := strings.Cut(tag.Repository.Name(), "/")
	layers, err := image.Layers()
	if err != nil {
		return fmt.Errorf("read %s: %w", reference, err)
	}
	config, err := partial.ConfigLayer(image)
	if err != nil {
		return fmt.Errorf("read %s: %w", reference, err)
	}
	for _, blob := range append(layers, config) {
		digest, err := blob.Digest()
		if err != nil {
			return fmt.Errorf("read %s: %w", reference, err)
		}
		content, err := blob.Compressed()
		if err != nil {
			return fmt.Errorf("read %s: %w", reference, err)
		}
		err = put(handler, http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", content)
		_ = content.Close() // of a file that was read
		if err != nil {
			return err
		}
	}
	manifest, err := image.RawManifest()
	if err != nil {
		return fmt.Errorf("read %s: %w", reference, err)
	}
	kind, err := image.MediaType()
	if err != nil {
		return fmt.Errorf("read %s: %w", reference, err)
	}
	return put(handler, http.MethodPut, "/v2/"+repository+"/manifests/"+tag.TagStr(), string(kind), bytes.NewReader(manifest))
}

// put asks the registry without a network to keep something.
func put(handler http.Handler, method, path, kind string, content io.Reader) error {
	r := httptest.NewRequestWithContext(context.Background(), method, path, content)
	r.Header.Set("Content-Type", kind)
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code != http.StatusCreated {
		return fmt.Errorf("the mirror answers %s of %s with %d: %s", method, path, w.Code, w.Body)
	}
	return nil
}
