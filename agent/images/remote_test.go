// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const privateName = "example.org/private:1"

// machine is a node with containerd's store of content, names and snapshots. Unpacking mounts nothing.
type machine struct {
	Containerd
	ctx   context.Context
	db    *metadata.DB
	added []string // names of which the CRI service was notified
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	layers := testenv.Must(native.NewSnapshotter(filepath.Join(dir, "snapshots")))(t)
	file := testenv.Must(bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil))(t)
	t.Cleanup(func() { _, _ = layers.Close(), file.Close() })
	m := &machine{ctx: namespaces.WithNamespace(t.Context(), "test")}
	m.db = metadata.NewDB(file, testenv.Must(local.NewStore(dir))(t), map[string]snapshots.Snapshotter{"native": layers})
	testenv.NoError(t, m.db.Init(m.ctx))
	c, err := client.New("", client.WithServices(client.WithContentStore(m.db.ContentStore()),
		client.WithImageStore(metadata.NewImageStore(m.db)), client.WithLeasesService(metadata.NewLeaseManager(m.db)),
		client.WithSnapshotters(map[string]snapshots.Snapshotter{"native": m.db.Snapshotter("native")}),
		client.WithDiffService(unpacker{store: m.db.ContentStore()}), client.WithIntrospectionService(plugins{})))
	testenv.NoError(t, err)
	m.Containerd = Containerd{Client: c, Namespace: "test", Snapshotter: "native", NotifyImageAdded: func(_ context.Context, name string) error {
		m.added = append(m.added, name)
		return nil
	}}
	return m
}

// unpacker compares layers with their configuration, as containerd's own does, and writes no files.
type unpacker struct {
	diff.Comparer
	store content.Store
}

func (u unpacker) Apply(ctx context.Context, d ocispec.Descriptor, _ []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	is, err := (&heldBlobs{Store: u.store}).uncompressed(ctx, d)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: is}, err
}

type plugins struct{ introspection.Service }

func (plugins) Plugins(context.Context, ...string) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{{ID: "native"}}}, nil
}

// importArchive imports an archive, as the folder of the machine does.
func (m *machine) importArchive(t *testing.T, archive []byte) {
	t.Helper()
	testenv.Must(m.Import(m.ctx, bytes.NewReader(archive), "docker.io/library/x", Origin{Device: 1, Archive: "app.tar"}))(t)
}

// has reports whether the machine has the image of a name, with all of its content after a collection.
func (m *machine) has(t *testing.T, name string) bool {
	t.Helper()
	testenv.Must(m.db.GarbageCollect(m.ctx))(t)
	return testenv.Must(m.Complete(m.ctx, name))(t)
}

func (m *machine) leases(t *testing.T) int {
	t.Helper()
	return len(testenv.Must(m.Client.LeasesService().List(m.ctx))(t))
}

// cluster are servers that a node asks, by name.
type cluster map[string]http.HandlerFunc

func (c cluster) Servers() []string {
	var names []string
	for name := range c {
		names = append(names, name)
	}
	return names
}

// Get sends the response while the handler writes it.
func (c cluster) Get(ctx context.Context, server, path string) (*http.Response, error) {
	if c[server] == nil {
		return nil, errors.New("it does not answer")
	}
	r, w := io.Pipe()
	out := &streamed{pipe: w, header: http.Header{}, begun: make(chan int, 1)}
	request := httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	go func() {
		c[server](out, request)
		out.WriteHeader(http.StatusOK)
		_ = w.Close()
	}()
	stop := context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	body := struct {
		io.Reader
		io.Closer
	}{r, closer(func() error { stop(); return r.Close() })}
	select {
	case code := <-out.begun:
		return &http.Response{StatusCode: code, Status: http.StatusText(code), Body: body}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

type closer func() error

func (c closer) Close() error { return c() }

type streamed struct {
	pipe   *io.PipeWriter
	header http.Header
	once   sync.Once
	begun  chan int // one: the code
}

func (s *streamed) Header() http.Header { return s.header }
func (s *streamed) WriteHeader(code int) {
	s.once.Do(func() { s.begun <- code })
}
func (s *streamed) Write(p []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	return s.pipe.Write(p)
}

// serve answers as a server's content route does.
func (m *machine) serve(w http.ResponseWriter, r *http.Request) {
	blob, isBlob := strings.CutPrefix(r.URL.Path, BlobsPath)
	if !isBlob {
		m.ServeNames(w, r)
		return
	}
	data, err := content.ReadBlob(m.ctx, m.Client.ContentStore(), ocispec.Descriptor{Digest: digest.Digest(blob)})
	if err != nil {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write(data)
}

// publishes is a server that says what it is given, and has no content.
func publishes(all ...Published) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(all) }
}

func (m *machine) remote(servers Servers) *Remote {
	return NewRemote(m.Containerd, servers, slog.New(slog.DiscardHandler))
}

func (p imageBlobs) whole(t *testing.T) []byte {
	return p.layout(t, map[string][]byte{digest.FromBytes(p.manifest).Encoded(): p.manifest, digest.FromBytes(p.config).Encoded(): p.config,
		digest.FromBytes(p.layer).Encoded(): p.layer})
}

// inIndex returns the image below an index, beside one for another kind of machine that no archive has.
func (p imageBlobs) inIndex(t *testing.T) []byte {
	here, foreign := platforms.DefaultSpec(), descriptorOf(ocispec.MediaTypeImageManifest, []byte("{}"))
	d := p.descriptor
	d.Platform, foreign.Platform = &here, &ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	index := encode(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{foreign, d}})
	outer := p
	outer.descriptor = descriptorOf(ocispec.MediaTypeImageIndex, index)
	blobs := map[string][]byte{}
	for _, b := range [][]byte{index, p.manifest, p.config, p.layer} {
		blobs[digest.FromBytes(b).Encoded()] = b
	}
	return outer.layout(t, blobs)
}

func TestImageOfAServerIsFetched(t *testing.T) {
	p := makeImageBlobs(t)
	for what, archive := range map[string][]byte{"manifest": p.whole(t), "index": p.inIndex(t)} {
		t.Run(what, func(t *testing.T) {
			server, node := newMachine(t), newMachine(t)
			server.importArchive(t, archive)
			r := node.remote(cluster{"s1": server.serve, "s2": http.NotFound})
			testenv.False(t, r.Fetch(t.Context(), "example.org/other:1"), "an image was fetched that no server has")
			testenv.Require(t, r.Fetch(t.Context(), "example.org/private:1"), "the server's image was not fetched")
			testenv.True(t, node.has(t, privateName), "the image is not complete")
			testenv.Equal(t, node.leases(t), 0, "leases that remain:")
			testenv.Equal(t, strings.Join(node.added, " "), privateName, "the CRI service was notified of")
			testenv.Equal(t, testenv.Must(node.Pinned(node.ctx))(t)[privateName], Origin{Server: "s1"}, "its origin")
			testenv.True(t, node.Imported(node.ctx, digest.FromBytes(p.config).String()), "it is not for every pod")
			was := testenv.Must(server.Client.ImageService().Get(server.ctx, privateName))(t)
			is := testenv.Must(node.Client.ImageService().Get(node.ctx, privateName))(t)
			testenv.Equal(t, is.Target.Digest, was.Target.Digest, "the target's digest")
			testenv.Equal(t, len(testenv.Must(node.Publish(node.ctx, ""))(t)), 0, "the node itself publishes")
		})
	}
}

// TestOnlyArchivesOfTheFolderArePublished: neither what was pulled, nor what an archive only names, nor what no archive
// has any more.
func TestOnlyArchivesOfTheFolderArePublished(t *testing.T) {
	p := makeImageBlobs(t)
	m := newMachine(t)
	published := func(name string) int { return len(testenv.Must(m.Publish(m.ctx, name))(t)) }
	stored(m.ctx, t, m.Containerd, privateName)
	testenv.Equal(t, published(privateName), 0, "published though it was pulled:")
	m.importArchive(t, p.layout(t, map[string][]byte{digest.FromBytes(p.manifest).Encoded(): p.manifest}))
	testenv.Equal(t, published(privateName), 0, "published though the archive held only its manifest:")
	m.importArchive(t, p.whole(t))
	testenv.Equal(t, published(privateName), 1, "published")
	testenv.Equal(t, published("example.org/other:1"), 0, "published by another name")
	all := testenv.Must(m.Publish(m.ctx, ""))(t)
	testenv.True(t, len(all) == 1 && all[0].Documents == nil && time.Since(all[0].Imported) < time.Hour, "the list is %v", all)
	testenv.NoError(t, m.Unpin(m.ctx, privateName))
	testenv.Equal(t, published(privateName), 0, "published though no archive has it any more:")
}

// TestNewestImportWins: by the servers' clocks, and else the first server.
func TestNewestImportWins(t *testing.T) {
	here := platforms.DefaultString()
	at := func(text string) time.Time { return testenv.Must(time.Parse(time.DateOnly, text))(t) }
	image := func(digest string, imported time.Time) http.HandlerFunc {
		return publishes(Published{Name: privateName, Platform: here, Imported: imported, Target: ocispec.Descriptor{Digest: dig(digest)}})
	}
	foreign := publishes(Published{Name: privateName, Platform: "windows/amd64", Imported: at("2030-01-01")})
	otherName := publishes(Published{Name: "example.org/other:1", Platform: here, Imported: at("2030-01-01")})
	broken := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }
	garbage := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[{") }
	for what, c := range map[string]struct {
		servers cluster
		from    string
		fails   bool
	}{
		"no server":                     {servers: cluster{}},
		"servers without the image":     {servers: cluster{"a": http.NotFound, "b": publishes()}},
		"the newest":                    {servers: cluster{"a": image("1", at("2026-01-01")), "b": image("2", at("2026-02-01")), "c": image("3", at("2025-01-01"))}, from: "b"},
		"a clock in 1970":               {servers: cluster{"a": image("1", at("1970-01-02")), "b": image("2", at("2026-02-01"))}, from: "b"},
		"both at once":                  {servers: cluster{"b": image("1", at("2026-01-01")), "a": image("2", at("2026-01-01"))}, from: "a"},
		"of an earlier version":         {servers: cluster{"a": image("1", time.Time{}), "b": image("2", at("2026-02-01"))}, from: "b"},
		"for another machine":           {servers: cluster{"a": foreign, "b": image("2", at("2026-02-01"))}, from: "b"},
		"only for another machine":      {servers: cluster{"a": foreign}},
		"another name than was asked":   {servers: cluster{"a": otherName}},
		"one does not answer":           {servers: cluster{"a": nil, "b": image("2", at("2026-02-01"))}, from: "b", fails: true},
		"one does not answer, and none": {servers: cluster{"a": nil, "b": publishes()}, fails: true},
		"one fails":                     {servers: cluster{"a": broken, "b": publishes()}, fails: true},
		"one answers garbage":           {servers: cluster{"a": garbage}, fails: true},
	} {
		from, _, err := newMachine(t).remote(c.servers).newest(t.Context(), privateName)
		testenv.Equal(t, from, c.from, "%s: the server", what)
		testenv.True(t, (err != nil) == c.fails, "%s: error %v", what, err)
	}
}

func dig(text string) digest.Digest { return digest.FromString(text) }

// TestUnresponsiveServerCostsASecond: of a question for an image.
func TestUnresponsiveServerCostsASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, node := newMachine(t), newMachine(t)
		server.importArchive(t, makeImageBlobs(t).whole(t))
		stuck := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		start := time.Now()
		testenv.True(t, node.remote(cluster{"a": stuck, "b": server.serve}).Fetch(t.Context(), privateName), "the image was not fetched")
		testenv.True(t, time.Since(start) <= askTimeout, "it took %v", time.Since(start))
	})
}

// failing is a server whose blobs can fail.
type failing struct {
	*machine
	mu    sync.Mutex
	fail  func(w http.ResponseWriter, r *http.Request) bool // handles a request for a blob
	blobs []string                                          // that were asked for
}

func (f *failing) serveSome(w http.ResponseWriter, r *http.Request) {
	if blob, ok := strings.CutPrefix(r.URL.Path, BlobsPath); ok {
		f.mu.Lock()
		f.blobs = append(f.blobs, blob)
		fail := f.fail
		f.mu.Unlock()
		if fail != nil && fail(w, r) {
			return
		}
	}
	f.serve(w, r)
}

func (f *failing) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.blobs)
}

func newFailing(t *testing.T, p imageBlobs, fail func(http.ResponseWriter, *http.Request) bool) *failing {
	f := &failing{machine: newMachine(t), fail: fail}
	f.importArchive(t, p.whole(t))
	return f
}

// TestFailedFetchLeavesNoName: whatever a server sends, and the next attempt goes on with what has arrived.
func TestFailedFetchLeavesNoName(t *testing.T) {
	p := makeImageBlobs(t)
	layer, config := digest.FromBytes(p.layer).String(), digest.FromBytes(p.config).String()
	isLayer := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, layer) }
	for what, fail := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"it does not have the layer": func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				http.NotFound(w, r)
			}
			return isLayer(r)
		},
		"another layer of that size": func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				_, _ = w.Write(bytes.Repeat([]byte("x"), len(p.layer)))
			}
			return isLayer(r)
		},
		"half of the layer": func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				_, _ = w.Write(p.layer[:len(p.layer)/2])
			}
			return isLayer(r)
		},
		"more than the layer": func(w http.ResponseWriter, r *http.Request) bool {
			if isLayer(r) {
				_, _ = w.Write(slices.Concat([]byte("more"), p.layer))
			}
			return isLayer(r)
		},
	} {
		t.Run(what, func(t *testing.T) {
			server, node := newFailing(t, p, fail), newMachine(t)
			r := node.remote(cluster{"s": server.serveSome})
			for range 2 {
				testenv.False(t, r.Fetch(t.Context(), privateName), "the image was fetched")
				testenv.False(t, node.has(t, privateName), "the node has it")
			}
			if _, err := node.Client.ImageService().Get(node.ctx, privateName); !errdefs.IsNotFound(err) {
				t.Errorf("the name is there: %v", err)
			}
			testenv.Equal(t, node.leases(t), 1, "leases that protect what has arrived:")
			server.fail = nil
			testenv.True(t, r.Fetch(t.Context(), privateName), "the image was not fetched once the server was well")
			testenv.True(t, node.has(t, privateName), "the node does not have it")
			testenv.Equal(t, node.leases(t), 0, "leases that remain:")
			asked := server.asked()
			testenv.Equal(t, len(slices.DeleteFunc(asked, func(d string) bool { return d != config })), 1, "the configuration was fetched times:")
		})
	}
}

// TestServersDocumentsAreCompared: with the digest that the server itself named.
func TestServersDocumentsAreCompared(t *testing.T) {
	p := makeImageBlobs(t)
	server, node := newMachine(t), newMachine(t)
	server.importArchive(t, p.whole(t))
	swapped := func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, NamesPath) {
			server.serve(w, r)
			return
		}
		all := testenv.Must(server.Publish(r.Context(), privateName))(t)
		all[0].Documents = [][]byte{[]byte("{}")}
		publishes(all...)(w, r)
	}
	r := node.remote(cluster{"s": func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, p.descriptor.Digest.String()) {
			_, _ = io.WriteString(w, "{}") // nor is it taken as a blob
			return
		}
		swapped(w, r)
	}})
	testenv.False(t, r.Fetch(t.Context(), privateName), "an image with another manifest was fetched")
}

// TestImageIsFetchedOnce: for all pods that want it at the same time.
func TestImageIsFetchedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		server, node := newFailing(t, makeImageBlobs(t), func(_ http.ResponseWriter, r *http.Request) bool {
			select {
			case <-goOn:
			case <-r.Context().Done():
			}
			return false
		}), newMachine(t)
		r := node.remote(cluster{"s": server.serveSome})
		first, cancel := context.WithCancel(t.Context())
		got := make(chan bool, 21) // one for each caller
		go func() { got <- r.Fetch(first, privateName) }()
		synctest.Wait()
		for range 20 {
			go func() { got <- r.Fetch(t.Context(), privateName) }()
		}
		synctest.Wait()
		testenv.Equal(t, len(server.asked()), 1, "requests of 21 callers while the configuration is fetched:")
		cancel() // the first pod is deleted: the others want the image all the same
		testenv.False(t, <-got, "a caller that ended has the image")
		synctest.Wait()
		close(goOn)
		for range 20 {
			testenv.True(t, <-got, "a caller does not have the image")
		}
		testenv.Equal(t, len(server.asked()), 3, "requests of all (the configuration twice, and the layer):")
	})
}

// TestBusyAndStalledServers: the first is asked again, the second is given up.
func TestBusyAndStalledServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := 5
		server, node := newFailing(t, makeImageBlobs(t), func(w http.ResponseWriter, _ *http.Request) bool {
			if busy--; busy >= 0 {
				http.Error(w, "busy", http.StatusServiceUnavailable)
			}
			return busy >= 0
		}), newMachine(t)
		r := node.remote(cluster{"s": server.serveSome})
		testenv.True(t, r.Fetch(t.Context(), privateName), "the image was not fetched after the server was busy")
		testenv.True(t, node.has(t, privateName), "the node does not have it")

		for what, stalls := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
			"from the start": func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
			"half-way": func(w http.ResponseWriter, r *http.Request) bool {
				_, _ = w.Write([]byte("{"))
				<-r.Context().Done()
				return true
			},
		} {
			server.fail, node = stalls, newMachine(t)
			start := time.Now()
			testenv.False(t, node.remote(cluster{"s": server.serveSome}).Fetch(t.Context(), privateName), "%s: the image was fetched", what)
			testenv.True(t, time.Since(start) < 2*stallTimeout, "%s: it took %v", what, time.Since(start))
		}
	})
}

// TestPinOfAFetchedImage: it goes when the server that had the image says that it does not publish it any more.
func TestPinOfAFetchedImage(t *testing.T) {
	for what, c := range map[string]struct {
		later func(server *machine) cluster
		stays bool
	}{
		"the server still publishes it":       {func(s *machine) cluster { return cluster{"s": s.serve} }, true},
		"the server publishes nothing":        {func(*machine) cluster { return cluster{"s": publishes(), "t": publishes()} }, false},
		"the server has no node any more":     {func(*machine) cluster { return cluster{"s": http.NotFound} }, true},
		"another server publishes it":         {func(s *machine) cluster { return cluster{"s": publishes(), "t": s.serve} }, true},
		"the server does not answer":          {func(*machine) cluster { return cluster{"s": nil, "t": publishes()} }, true},
		"the server is no member for now":     {func(*machine) cluster { return cluster{"t": publishes()} }, true},
		"there is no server at all":           {func(*machine) cluster { return cluster{} }, true},
		"it is another image under this name": {func(*machine) cluster { return cluster{"s": publishes(Published{Name: privateName})} }, true},
	} {
		t.Run(what, func(t *testing.T) {
			server, node := newMachine(t), newMachine(t)
			server.importArchive(t, makeImageBlobs(t).whole(t))
			r := node.remote(cluster{"s": server.serve})
			testenv.Require(t, r.Fetch(t.Context(), privateName), "the image was not fetched")
			node.remote(c.later(server)).Unpin(t.Context())
			_, pinned := testenv.Must(node.Pinned(node.ctx))(t)[privateName]
			testenv.Equal(t, pinned, c.stays, "it is pinned:")
			testenv.True(t, node.has(t, privateName), "the image is gone")
		})
	}
}

// TestOwnArchiveTakesOverAFetchedImage: the folder of the node decides from then on.
func TestOwnArchiveTakesOverAFetchedImage(t *testing.T) {
	p := makeImageBlobs(t)
	server, node := newMachine(t), newMachine(t)
	server.importArchive(t, p.whole(t))
	r := node.remote(cluster{"s": server.serve})
	testenv.Require(t, r.Fetch(t.Context(), privateName), "the image was not fetched")
	testenv.NoError(t, node.SetOrigin(node.ctx, privateName, Origin{Device: 1, Archive: "a.tar"}))
	node.remote(cluster{"s": publishes()}).Unpin(t.Context())
	testenv.Equal(t, testenv.Must(node.Pinned(node.ctx))(t)[privateName], Origin{Device: 1, Archive: "a.tar"}, "its origin")
}

func TestServersThatDifferAreReported(t *testing.T) {
	old, now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
	image := func(digest, platform string, at time.Time) Published {
		return Published{Name: privateName, Platform: platform, Imported: at, Target: ocispec.Descriptor{Digest: dig(digest)}}
	}
	for what, c := range map[string]struct {
		answers []answer
		want    []string // in the only sentence
	}{
		"the same image":          {answers: []answer{{server: "b", images: []Published{image("1", "p", now)}}, {server: "a", images: []Published{image("1", "p", old)}}}},
		"for different platforms": {answers: []answer{{server: "b", images: []Published{image("1", "p", now)}}, {server: "a", images: []Published{image("2", "q", old)}}}},
		"one does not answer":     {answers: []answer{{server: "b", images: []Published{image("1", "p", now)}}, {server: "a", err: errors.New("no")}}},
		"two": {answers: []answer{{server: "b", images: []Published{image("1", "p", now)}}, {server: "a", images: []Published{image("2", "p", old)}}},
			want: []string{privateName, "a has " + dig("2").String()[:19] + ", imported 2026-01-01", "b has " + dig("1").String()[:19], "fetch that of b,"}},
		"at the same time": {answers: []answer{{server: "b", images: []Published{image("1", "p", now)}}, {server: "a", images: []Published{image("2", "p", now)}}},
			want: []string{"fetch that of a,"}},
	} {
		got := differences(c.answers)
		testenv.Equal(t, len(got), min(len(c.want), 1), "%s: sentences", what)
		for _, part := range c.want {
			testenv.Contains(t, strings.Join(got, ""), part, "%s", what)
		}
	}
	server, other := newMachine(t), newMachine(t)
	server.importArchive(t, makeImageBlobs(t).whole(t))
	other.importArchive(t, makeImageBlobs(t).inIndex(t))
	got := testenv.Must(server.remote(cluster{"two": other.serve}).Differences(server.ctx, "one"))(t)
	testenv.Equal(t, len(got), 1, "sentences about two servers:")
}
