// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	upstream "github.com/containerd/containerd/v2/core/content"
	godigest "github.com/opencontainers/go-digest"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/content"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// folderPeers are other machines whose blobs are files of a folder.
type folderPeers struct {
	dir      string
	counters content.Counters
}

// Fetch implements containerd.Peers.
func (p *folderPeers) Fetch(_ context.Context, d godigest.Digest, _ int64, to upstream.Writer) error {
	data, err := os.ReadFile(filepath.Join(p.dir, d.Encoded()))
	if err != nil {
		return content.ErrOutside
	}
	if _, err := to.Write(data); err == nil && to.Digest() == d {
		return nil
	}
	return errors.Join(content.ErrOutside, to.Truncate(0))
}

// FromOutside implements containerd.Peers.
func (p *folderPeers) FromOutside(size int64) { p.counters.Outside.Add(size) }

// share makes the runtime use blobs in dir/peers, and serve its own on the socket dir/content.sock.
func share(dir string, s *containerd.Server) error {
	p := &folderPeers{dir: filepath.Join(dir, "peers")}
	s.SetPeers(p)
	mux := http.NewServeMux()
	mux.Handle("/v1/", content.NewServer(content.ServerOptions{Source: func() content.Source { return s.Blobs() }, Counters: &p.counters}))
	mux.HandleFunc("/outside", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]int64{p.counters.Outside.Blobs.Load(), p.counters.Outside.Bytes.Load()})
	})
	mux.HandleFunc("/digests", func(w http.ResponseWriter, r *http.Request) {
		all, err := s.Blobs().Digests(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(all)
	})
	socket := filepath.Join(dir, "content.sock")
	_ = os.Remove(socket) // of an earlier run
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(l, mux) }() // ends with the process
	return nil
}

// peersHave makes other machines have a blob, with what they send for it.
func (n *node) peersHave(blob, sent []byte) {
	n.t.Helper()
	testenv.NoError(n.t, os.MkdirAll(filepath.Join(n.dir, "peers"), 0o755))
	testenv.NoError(n.t, os.WriteFile(filepath.Join(n.dir, "peers", strings.TrimPrefix(digest(blob), "sha256:")), sent, 0o600))
}

// served requests something of what the node serves to other machines.
func (n *node) served(path string) *http.Response {
	n.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.dir, "content.sock"))
	}}
	n.t.Cleanup(transport.CloseIdleConnections)
	answer := testenv.Must((&http.Client{Transport: transport}).Get("http://node" + path))(n.t)
	n.t.Cleanup(func() { _ = answer.Body.Close() })
	return answer
}

// outside returns how many blobs and bytes came from registries since the runtime was started.
func (n *node) outside() (blobs, size int64) {
	n.t.Helper()
	var counted [2]int64
	testenv.NoError(n.t, json.NewDecoder(n.served("/outside").Body).Decode(&counted))
	return counted[0], counted[1]
}

// countingRegistry is a registry of several images that counts requests by the end of their path.
type countingRegistry struct {
	t      *testing.T
	mux    *http.ServeMux
	server *httptest.Server
	host   string

	mu    sync.Mutex
	got   map[string]int
	wrong map[string]bool          // blobs that are sent with other bytes
	held  map[string]chan struct{} // blobs whose second half is sent when the channel is closed
}

func newCountingRegistry(t *testing.T) *countingRegistry {
	r := &countingRegistry{t: t, mux: http.NewServeMux(), got: map[string]int{}, wrong: map[string]bool{}, held: map[string]chan struct{}{}}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	r.host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

// add adds an image and returns its name. Its layer has the size at least.
func (r *countingRegistry) add(name string, size int) (string, testImage) {
	r.t.Helper()
	random := make([]byte, size)
	source := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", name))))
	testenv.Must(source.Read(random))(r.t)
	im := makeImage(r.t, string(random), "")
	r.mux.Handle("/v2/"+name+"/", &fakeRegistry{image: im, names: []string{name}})
	return r.host + "/" + name, im
}

// ServeHTTP implements http.Handler.
func (r *countingRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	_, authorized, _ := req.BasicAuth()
	last := filepath.Base(req.URL.Path)
	r.mu.Lock()
	if authorized != "" {
		r.got[last]++
	}
	wrong, held := r.wrong[last], r.held[last]
	r.mu.Unlock()
	if authorized == "" || !wrong && held == nil {
		r.mux.ServeHTTP(w, req)
		return
	}
	record := httptest.NewRecorder()
	r.mux.ServeHTTP(record, req)
	data := record.Body.Bytes()
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if wrong {
		data = make([]byte, len(data))
	}
	half := 0
	if held != nil {
		half = len(data) / 2
		_, _ = w.Write(data[:half])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-held:
		case <-req.Context().Done():
		}
	}
	_, _ = w.Write(data[half:])
}

// change changes how blobs are sent from now on.
func (r *countingRegistry) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// asked returns how often the registry sent a blob or manifest.
func (r *countingRegistry) asked(data []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[digest(data)]
}

// pull pulls an image as the kubelet does, with a pod's credentials.
func (n *node) pull(name string, auth *cri.AuthConfig) error {
	_, err := n.images.PullImage(n.t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}, Auth: auth})
	return err
}

// TestPullsUseOtherMachines pulls both by the transfer service and by the client library, which containerd uses where
// registries.yaml has credentials. Layers and configurations come from other machines that have them, the manifest and
// everything else from the registry. Without credentials for it, no machine's blobs make an image.
func TestPullsUseOtherMachines(t *testing.T) {
	n := newNode(t)
	auth := &cri.AuthConfig{Username: "user", Password: "word"}
	for way, credentials := range map[string]bool{"transfer": false, "client": true} {
		t.Run(way, func(t *testing.T) {
			registry, apart := newCountingRegistry(t), newCountingRegistry(t) // registries.yaml has no credentials for the second
			config := ""
			if credentials {
				config = fmt.Sprintf("configs: {%q: {auth: {username: user, password: word}}}\n", registry.host)
			}
			testenv.NoError(t, os.WriteFile(filepath.Join(n.dir, "registries.yaml"), []byte(config), 0o600))
			n.start()
			defer n.signal(os.Interrupt)

			name, im := registry.add(way+"/had", 1<<20)
			n.peersHave(im.config, im.config)
			n.peersHave(im.layer, im.layer)
			testenv.NoError(t, n.pull(name+":1", auth))
			testenv.Equal(t, registry.asked(im.config)+registry.asked(im.layer), 0, "blobs that other machines have come from the registry:")
			testenv.True(t, registry.asked(im.manifest) > 0 || registry.got["1"] > 0, "the registry was not asked for the manifest")
			blobs, _ := n.outside()
			testenv.Equal(t, blobs, int64(0), "blobs from outside are")

			name, im = registry.add(way+"/lie", 1<<20)
			n.peersHave(im.config, bytes.Repeat([]byte("{"), len(im.config)))
			n.peersHave(im.layer, make([]byte, len(im.layer)))
			testenv.NoError(t, n.pull(name+":1", auth), "other machines have wrong bytes")
			testenv.Equal(t, fmt.Sprint(registry.asked(im.config), registry.asked(im.layer)), "1 1", "the registry sent configuration and layer")
			blobs, size := n.outside()
			testenv.Equal(t, fmt.Sprint(blobs, size), fmt.Sprint(2, len(im.config)+len(im.layer)), "blobs and bytes from outside are")

			name, im = apart.add(way+"/private", 1<<20)
			for _, blob := range [][]byte{im.manifest, im.config, im.layer} {
				n.peersHave(blob, blob)
			}
			for _, ref := range []string{name + ":1", name + "@" + digest(im.manifest)} {
				testenv.True(t, n.pull(ref, nil) != nil, "%s was pulled without credentials", ref)
				present, _ := n.has(ref)
				testenv.False(t, present, "%s is there without credentials", ref)
			}
			testenv.NoError(t, n.pull(name+"@"+digest(im.manifest), auth))
			testenv.Equal(t, apart.asked(im.layer), 0, "the layer came from the registry:")

			name, im = registry.add(way+"/broken", 1<<20)
			registry.change(func() { registry.wrong[digest(im.layer)] = true })
			testenv.True(t, n.pull(name+":1", auth) != nil, "wrong bytes were taken from the registry")
			registry.change(func() { clear(registry.wrong) })
			testenv.NoError(t, n.pull(name+":1", auth), "the registry has mended its layer")
		})
	}
}

// TestNodeServesWhatItPulls: a node serves layers and configurations, whole ones and those that it is receiving, and
// no manifests. Layers stay after they are unpacked: containerd's discard_unpacked_layers is not set.
func TestNodeServesWhatItPulls(t *testing.T) {
	n := newNode(t)
	registry := newCountingRegistry(t)
	name, im := registry.add("app", 4<<20)
	config := fmt.Sprintf("configs: {%q: {auth: {username: user, password: word}}}\n", registry.host)
	testenv.NoError(t, os.WriteFile(filepath.Join(n.dir, "registries.yaml"), []byte(config), 0o600))
	n.start()
	blob := func(data []byte) string { return "/v1/blobs/" + digest(data) }
	testenv.Equal(t, n.served(blob(im.layer)).StatusCode, http.StatusNotFound, "before the pull")

	release := make(chan struct{})
	registry.change(func() { registry.held[digest(im.layer)] = release })
	pulled := make(chan error, 1)
	go func() { pulled <- n.pull(name+":1", nil) }()
	var answer *http.Response
	testenv.Until(t, 2*time.Minute, "the node serves what it receives", func() bool {
		answer = n.served(blob(im.layer))
		return answer.StatusCode == http.StatusOK
	})
	testenv.Equal(t, answer.Header.Get("Coracle-Partial"), "1", "the header of a part")
	testenv.Equal(t, answer.ContentLength, int64(len(im.layer)), "the whole size")
	got := make([]byte, 2<<20) // of what the registry has sent all but a rest of 64 KiB
	testenv.Must(io.ReadFull(answer.Body, got))(t)
	close(release)
	rest := testenv.Must(io.ReadAll(answer.Body))(t)
	testenv.True(t, bytes.Equal(append(got, rest...), im.layer), "another layer was sent")
	testenv.NoError(t, <-pulled)

	for what, data := range map[string][]byte{"layer": im.layer, "configuration": im.config} {
		answer := n.served(blob(data))
		testenv.Equal(t, answer.Header.Get("Coracle-Partial"), "", "the header of a whole %s", what)
		testenv.True(t, bytes.Equal(testenv.Must(io.ReadAll(answer.Body))(t), data), "the %s is another one", what)
	}
	testenv.Equal(t, n.served(blob(im.manifest)).StatusCode, http.StatusNotFound, "the manifest")
	var all []string
	testenv.NoError(t, json.NewDecoder(n.served("/digests").Body).Decode(&all))
	have := strings.Join(all, " ")
	testenv.True(t, strings.Contains(have, digest(im.layer)) && strings.Contains(have, digest(im.config)) && !strings.Contains(have, digest(im.manifest)),
		"it announces %s", have)

	// A pull that has ended half-way is not waited for.
	name, im = registry.add("ends", 4<<20)
	registry.change(func() { registry.held[digest(im.layer)] = make(chan struct{}) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := n.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name + ":1"}})
		pulled <- err
	}()
	testenv.Until(t, 2*time.Minute, "the node serves what it receives", func() bool {
		answer = n.served(blob(im.layer))
		return answer.StatusCode == http.StatusOK
	})
	testenv.Must(io.ReadFull(answer.Body, got))(t)
	cancel()
	testenv.True(t, <-pulled != nil, "the pull was not ended")
	_, err := io.ReadAll(answer.Body)
	testenv.True(t, err != nil, "the end of a part that will never be whole is no error")
}
