//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	imageRegistry = harness.OutsideIP + ":5000"
	// privateUser and privatePassword get the images below private/.
	privateUser, privatePassword = "me", "open sesame"
)

// countingRegistry is a registry on a site that counts how often it sends each blob.
type countingRegistry struct {
	http.Handler
	t    *testing.T
	base v1.Image // every node has its layers

	mu   sync.Mutex
	sent map[string]int // by digest
}

func newCountingRegistry(t *testing.T, site *harness.Site) *countingRegistry {
	t.Helper()
	box := filepath.Join(t.TempDir(), "box.tar")
	harness.WriteBoxImage(t, box)
	r := &countingRegistry{
		Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), t: t, base: testenv.Must(tarball.ImageFromPath(box, nil))(t),
		sent: map[string]int{},
	}
	var l net.Listener
	testenv.NoError(t, site.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", imageRegistry)
		return err
	}))
	s := &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // it ends with the test
	}()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return r
}

func (r *countingRegistry) serve(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if strings.HasPrefix(req.URL.Path, "/v2/private/") && (user != privateUser || password != privatePassword) {
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
		r.mu.Lock()
		r.sent[path.Base(req.URL.Path)]++
		r.mu.Unlock()
	}
	r.ServeHTTP(w, req)
}

// pushed is an image in the registry.
type pushed struct {
	name, digest string
	blobs        []string // digests of what no node has
	size         int64    // of these
}

// push puts an image with new layers into the registry.
func (r *countingRegistry) push(repository, tag string) (p pushed) {
	r.t.Helper()
	im := r.base
	var fresh []v1.Layer
	for range 3 {
		layer := testenv.Must(random.Layer(3<<20, types.DockerLayer))(r.t)
		im, fresh = testenv.Must(mutate.AppendLayers(im, layer))(r.t), append(fresh, layer)
	}
	fresh = append(fresh, testenv.Must(partial.ConfigLayer(im))(r.t))
	for _, l := range fresh {
		p.size += testenv.Must(l.Size())(r.t)
		p.blobs = append(p.blobs, testenv.Must(l.Digest())(r.t).String())
	}
	send := func(method, what, mediaType string, body io.ReadCloser) {
		defer body.Close()
		req := httptest.NewRequest(method, "/v2/"+repository+"/"+what, body)
		req.Header.Set("Content-Type", mediaType)
		answer := httptest.NewRecorder()
		r.ServeHTTP(answer, req)
		testenv.Equal(r.t, answer.Code, http.StatusCreated, "%s", answer.Body.String())
	}
	for _, l := range append(testenv.Must(r.base.Layers())(r.t), fresh...) {
		send(http.MethodPost, "blobs/uploads/?digest="+testenv.Must(l.Digest())(r.t).String(), "", testenv.Must(l.Compressed())(r.t))
	}
	manifest := testenv.Must(im.RawManifest())(r.t)
	send(http.MethodPut, "manifests/"+tag, string(testenv.Must(im.MediaType())(r.t)), io.NopCloser(bytes.NewReader(manifest)))
	p.name, p.digest = imageRegistry+"/"+repository+":"+tag, testenv.Must(im.Digest())(r.t).String()
	return p
}

// sentOnce fails unless the registry sent each blob of an image once.
func (r *countingRegistry) sentOnce(p pushed) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range p.blobs {
		if r.sent[d] != 1 {
			return fmt.Errorf("the registry sent %s %d times", d, r.sent[d])
		}
	}
	return nil
}

// podOf is a pod of an image on one node.
func podOf(name, image string, on *harness.Server, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec: {nodeName: %s, terminationGracePeriodSeconds: 0, %s containers: [{name: c, image: %q, command: [sleep, infinity]}]}
---
`, name, on.NodeName(), more, image)
}

// TestNodesShareImages: nodes that pull an image at once, one after the other, after a restart of the server and from a
// node that they cannot reach, get its blobs from the registry once. A private image by digest stays private though
// each of its blobs is in the cluster.
func TestNodesShareImages(t *testing.T) {
	site := harness.NewSite(t)
	r := newCountingRegistry(t, site)
	settings := filepath.Join(t.TempDir(), "registries.yaml")
	testenv.NoError(t, os.WriteFile(settings, fmt.Appendf(nil, "mirrors: {%q: {endpoint: [%q]}}\n", imageRegistry, "http://"+imageRegistry), 0o644))
	site.Needs = append(site.Needs, filepath.Dir(settings))
	s := site.NewMachine().NewServer("--private-registry", settings)
	s.AddBoxImage()
	s.Start()
	s.WaitReady()
	nodes := []*harness.Server{s}
	for range 2 {
		a := site.NewMachine().NewAgent(s, "--private-registry", settings)
		a.AddBoxImage()
		a.Start()
		nodes = append(nodes, a)
	}
	for _, n := range nodes {
		harness.Eventually(t, harness.Longer, "the node is Ready", func() error { return s.NodeReady(n) })
	}

	// A machine that is very busy may give up waiting for another one: then the next image has to do it.
	attempts := 0
	share := func(what, repository, more string, rounds ...[]*harness.Server) (p pushed) {
		t.Helper()
		harness.Eventually(t, 2*harness.Longer, what+": the registry sends each blob once", func() error {
			attempts++
			p = r.push(repository, fmt.Sprint(attempts))
			for i, round := range rounds {
				var pods []string
				for j, n := range round {
					name := fmt.Sprintf("pod-%d-%d-%d", attempts, i, j)
					pods = append(pods, "pod/"+name)
					s.InsistsOn(podOf(name, p.name, n, more))
				}
				s.Insists(append([]string{"wait", "--for=condition=Ready", "--timeout=300s"}, pods...)...)
			}
			return r.sentOnce(p)
		})
		return p
	}
	share("at once", "shop/web", "", nodes)
	share("one after the other", "shop/web", "", nodes[:1], nodes[1:2], nodes[2:])

	var received, sent, outside int64
	for _, n := range nodes {
		status := testenv.Must(n.Status())(t)
		testenv.Require(t, status.Content != nil, "the status of %s says nothing of content", n.NodeName())
		received, sent, outside = received+status.Content.Peers.Bytes, sent+status.Content.Sent.Bytes, outside+status.Content.Outside.Bytes
		testenv.Equal(t, status.Content.Refused, int64(0), "refused blobs are")
		metric := fmt.Sprintf("coracle_content_bytes_total{origin=\"peers\"} %v\n", float64(status.Content.Peers.Bytes))
		testenv.True(t, strings.Contains(s.Kubectl("get", "--raw", "/api/v1/nodes/"+n.NodeName()+"/proxy/metrics"), metric),
			"the metrics of %s do not say %s", n.NodeName(), metric)
	}
	t.Logf("%d bytes from other machines, %d from the registry, %d sent; %d images were pushed", received, outside, sent, attempts)
	testenv.True(t, received > 0 && outside > 0 && sent >= received, "%d bytes were received, %d sent, %d came from outside", received, sent, outside)

	// A server that has restarted asks the nodes again what they have.
	restarted := func() {
		testenv.NoError(t, s.Stop())
		s.StartAPI()
		for _, n := range nodes {
			harness.Eventually(t, harness.Longer, "the node is Ready", func() error { return s.NodeReady(n) })
		}
	}
	harness.Eventually(t, 2*harness.Longer, "the server that has restarted finds what nodes have", func() error {
		attempts++
		p := r.push("shop/web", fmt.Sprint(attempts))
		for _, n := range nodes[1:] {
			name := fmt.Sprintf("restart-%d-%s", attempts, n.NodeName())
			s.InsistsOn(podOf(name, p.name, n, ""))
			s.Insists("wait", "--for=condition=Ready", "--timeout=300s", "pod/"+name)
			if n == nodes[1] {
				restarted()
			}
		}
		return r.sentOnce(p)
	})

	// No machine connects to the last node: the server passes on what it has.
	for _, n := range nodes[:2] {
		site.NoConnecting(n.Machine, nodes[2].Machine)
	}
	share("through the server", "shop/web", "", nodes[2:], nodes[1:2], nodes[:1])
	site.Heal()

	login := base64.StdEncoding.EncodeToString([]byte(privateUser + ":" + privatePassword))
	s.InsistsOn(fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: login}
type: kubernetes.io/dockerconfigjson
stringData: {.dockerconfigjson: '{"auths": {%q: {"auth": %q}}}'}
`, imageRegistry, login))
	private := share("a private image", "private/web", "imagePullSecrets: [{name: login}],", nodes[:2])
	s.InsistsOn(podOf("thief", imageRegistry+"/private/web@"+private.digest, nodes[2], ""))
	harness.Eventually(t, harness.Longer, "a pod without credentials is refused the private image", func() error {
		out, err := s.TryKubectl("get", "events", "--field-selector", "involvedObject.name=thief", "-o", "jsonpath={.items[*].message}")
		if err != nil || !strings.Contains(out, "authorization failed") {
			return fmt.Errorf("%s, %w", out, err)
		}
		return nil
	})
	testenv.Equal(t, s.Kubectl("get", "pod", "thief", "-o", "jsonpath={.status.containerStatuses[0].imageID}"), "", "the pod without credentials has the image")
	s.InsistsOn(podOf("owner", imageRegistry+"/private/web@"+private.digest, nodes[2], "imagePullSecrets: [{name: login}],"))
	s.Insists("wait", "--for=condition=Ready", "--timeout=300s", "pod/owner")
	testenv.NoError(t, r.sentOnce(private), "the owner's node")
}
