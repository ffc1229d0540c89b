//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

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
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/time/rate"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// lineRate is the rate of the registry's line, in bytes per second: 10 Mbit/s.
	lineRate = 10e6 / 8
	// layers of layerBytes random bytes each are an image of 100 MB.
	layers, layerBytes = 4, 25_000_000
	registryAddress    = harness.OutsideIP + ":5000"
)

// thinRegistry is a registry behind one thin line, whose bytes are counted.
type thinRegistry struct {
	http.Handler
	box   v1.Image
	line  *rate.Limiter
	bytes atomic.Int64
}

// thinConn is a connection over the line.
type thinConn struct {
	net.Conn
	r *thinRegistry
}

func (c thinConn) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), c.r.line.Burst())]
		if err = c.r.line.WaitN(context.Background(), len(part)); err != nil {
			break
		}
		var k int
		k, err = c.Conn.Write(part)
		c.r.bytes.Add(int64(k))
		n, p = n+k, p[k:]
	}
	return n, err
}

type thinListener struct {
	net.Listener
	r *thinRegistry
}

func (l thinListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return thinConn{c, l.r}, err
}

// newThinRegistry starts a registry on a site, where no machine is.
func newThinRegistry(t *testing.T, site *harness.Site) *thinRegistry {
	t.Helper()
	box := filepath.Join(t.TempDir(), "box.tar")
	harness.WriteBoxImage(t, box)
	r := &thinRegistry{
		Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), line: rate.NewLimiter(lineRate, 16<<10),
		box: testenv.Must(tarball.ImageFromPath(box, nil))(t),
	}
	var l net.Listener
	testenv.NoError(t, site.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", registryAddress)
		return err
	}))
	s := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(thinListener{l, r}) // it ends with the test
	}()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return r
}

// push puts a new image of 100 MB into the registry and returns its name and size in bytes.
func (r *thinRegistry) push(t *testing.T, tag string) (ref string, size int64) {
	t.Helper()
	im := r.box
	for range layers {
		layer := testenv.Must(random.Layer(layerBytes, types.DockerLayer))(t)
		im = testenv.Must(mutate.AppendLayers(im, layer))(t)
		size += testenv.Must(layer.Size())(t) // the rest every node has
	}
	for _, l := range append(testenv.Must(im.Layers())(t), testenv.Must(partial.ConfigLayer(im))(t)) {
		r.send(t, http.MethodPost, "blobs/uploads/?digest="+testenv.Must(l.Digest())(t).String(), "", testenv.Must(l.Compressed())(t))
	}
	manifest := testenv.Must(im.RawManifest())(t)
	r.send(t, http.MethodPut, "manifests/"+tag, string(testenv.Must(im.MediaType())(t)), io.NopCloser(bytes.NewReader(manifest)))
	return registryAddress + "/shop/web:" + tag, size
}

// send sends something to the registry, not over its line.
func (r *thinRegistry) send(t *testing.T, method, path, mediaType string, body io.ReadCloser) {
	t.Helper()
	defer body.Close()
	req := httptest.NewRequest(method, "/v2/shop/web/"+path, body)
	req.Header.Set("Content-Type", mediaType)
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, req)
	testenv.Equal(t, answer.Code, http.StatusCreated, "%s", answer.Body.String())
}

// TestContentSpreads measures how ten nodes behind a thin line get one image of 100 MB that no node has: when the last
// pod is Ready, beside one node that pulls alone, and how many bytes come over the line.
func TestContentSpreads(t *testing.T) {
	const nodes = 10
	site := harness.NewSite(t)
	r := newThinRegistry(t, site)
	settings := filepath.Join(t.TempDir(), "registries.yaml")
	testenv.NoError(t, os.WriteFile(settings, fmt.Appendf(nil, "mirrors: {%q: {endpoint: [%q]}}\n", registryAddress, "http://"+registryAddress), 0o644))
	site.Needs = append(site.Needs, filepath.Dir(settings))
	first := site.NewMachine().NewServer("--private-registry", settings)
	machines := []*harness.Server{first}
	first.AddBoxImage()
	first.Start()
	first.WaitReady()
	for range nodes - 1 {
		a := site.NewMachine().NewAgent(first, "--private-registry", settings)
		a.AddBoxImage()
		a.Start()
		machines = append(machines, a)
	}
	for _, m := range machines {
		harness.Eventually(t, soon, "the node is Ready", func() error { return first.NodeReady(m) })
	}

	measure := func(what, name, ref string, pods int, size int64) {
		before, start := r.bytes.Load(), time.Now()
		first.Apply(harness.Workload("Deployment", name, fmt.Sprintf("replicas: %d", pods),
			fmt.Sprintf(`containers: [{name: c, image: %q, command: [sleep, infinity]}], `, ref)+harness.OnePerNode(name)))
		last := await(t, first, name, pods, start)
		sent := r.bytes.Load() - before
		fmt.Printf("| %s | %.1f | %.1f | %.2f | %s |\n", what, last.Seconds(), float64(sent)/1e6, float64(sent)/float64(size), load())
	}
	fmt.Printf("\n| an image of 100 MB over 10 Mbit/s | last pod Ready after s | MB over the line | of the image | load |\n| --- | --- | --- | --- | --- |\n")
	ref, size := r.push(t, "alone")
	measure("one node alone", "alone", ref, 1, size)
	ref, size = r.push(t, "all")
	measure(fmt.Sprintf("%d nodes at once", nodes), "all", ref, nodes, size)
}

// await waits until as many pods of a workload are Ready, and returns when the last one was.
func await(t *testing.T, s *harness.Server, workload string, count int, start time.Time) (last time.Duration) {
	t.Helper()
	harness.Eventually(t, 20*time.Minute, "the pods are Ready", func() error {
		out, err := s.TryKubectl("get", "pods", "-l", "app="+workload, "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if ready := strings.Count(out, "True"); err != nil || ready < count {
			return fmt.Errorf("%d are; %w", ready, err)
		}
		last = time.Since(start)
		return nil
	})
	return last
}
