// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// serverLabel is a label of an image's name that was fetched from a server: the server that published the image.
	serverLabel = "coracle/server"
	// leaseLabel is a label of the leases of images that are being fetched: the image's name.
	leaseLabel = "coracle/image"

	// askTimeout bounds the questions for one name.
	askTimeout = time.Second
	// maxAnswer bounds one answer. JSON writes documents a third larger than they are.
	maxAnswer = 2 * maxDocuments
	// fetchedAtOnce is how many blobs of published images a node fetches at the same time.
	fetchedAtOnce = 2
	// busyWait is the time between two attempts at a server that is busy, and busyAttempts is how many there are.
	busyWait, busyAttempts = time.Second, 60
	// stallTimeout is how long a server may send nothing of a blob.
	stallTimeout = 30 * time.Second
)

// Servers reaches the servers of the cluster, with certificates at both ends.
type Servers interface {
	// Servers returns the servers that are alive.
	Servers() []string
	// Get sends a GET request to one of them. path may have a query. It returns an error if the other end is no server.
	Get(ctx context.Context, server, path string) (*http.Response, error)
}

// Remote fetches images that servers have imported. An image is fetched when a pod wants it.
type Remote struct {
	Store   Containerd
	Servers Servers
	Logger  *slog.Logger

	slots   chan struct{} // holds a value for each blob that is being fetched
	mu      sync.Mutex
	fetches map[string]*fetch // by the image's name
}

// fetch is an image that is being fetched.
type fetch struct {
	done     chan struct{} // closed when it has ended
	complete bool
	canceled bool // the caller that fetched it does not want it any more
}

// NewRemote makes a Remote that fetches into a store.
func NewRemote(store Containerd, servers Servers, log *slog.Logger) *Remote {
	return &Remote{Store: store, Servers: servers, Logger: log, slots: make(chan struct{}, fetchedAtOnce), fetches: map[string]*fetch{}}
}

// Fetch fetches the image of a name, as pods write it, if a server publishes it, and reports whether this node has it
// now. All layers are unpacked then. An image is fetched once, whatever the number of callers is. An error is logged;
// what has arrived until then is kept for the next call.
func (r *Remote) Fetch(ctx context.Context, name string) bool {
	name, err := Normalize(name)
	if err != nil {
		return false // no image of such a name can be imported
	}
	from, image, unanswered := r.newest(ctx, name)
	if from == "" {
		if unanswered != nil && ctx.Err() == nil {
			r.Logger.Warn("images: an image is not on this node, and not all servers say whether they have imported it", "image", name,
				"error", unanswered)
		}
		return false
	}
	for {
		r.mu.Lock()
		f, others := r.fetches[name]
		if !others {
			f = &fetch{done: make(chan struct{})}
			r.fetches[name] = f
		}
		r.mu.Unlock()
		if !others {
			f.complete = r.pull(ctx, from, image)
			f.canceled = !f.complete && ctx.Err() != nil
			r.mu.Lock()
			delete(r.fetches, name)
			r.mu.Unlock()
			close(f.done)
			if f.complete && unanswered == nil {
				r.Unpin(ctx) // the image may replace an earlier one
			}
			return f.complete
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return false
		}
		if !f.canceled {
			return f.complete
		}
	}
}

// newest returns the image that was imported last among those that servers publish for a name, and its server. Of two
// that were imported in the same second it is that of the first server in the order of their names. An empty server
// means that no server publishes one for this machine. The error says which servers have not answered.
func (r *Remote) newest(ctx context.Context, name string) (from string, image Published, err error) {
	var errs []error
	for _, a := range r.ask(ctx, NamesPath+"?name="+url.QueryEscape(name)) {
		if !errors.Is(a.err, errNoNode) {
			errs = append(errs, a.err)
		}
		for _, p := range a.images {
			if p.Name == name && isForThisMachine(p.Platform) && (from == "" || p.Imported.After(image.Imported)) {
				from, image = a.server, p
			}
		}
	}
	return from, image, errors.Join(errs...)
}

func isForThisMachine(platform string) bool {
	p, err := platforms.Parse(platform)
	return err == nil && platforms.Default().Match(p)
}

// answer is what one server publishes.
type answer struct {
	server string
	images []Published
	err    error
}

// ask asks all servers. The answers are sorted by the servers' names.
func (r *Remote) ask(ctx context.Context, path string) []answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	servers := slices.Sorted(slices.Values(r.Servers.Servers()))
	answers := make([]answer, len(servers))
	var asking sync.WaitGroup
	for i, server := range servers {
		asking.Go(func() {
			images, err := r.askOne(ctx, server, path)
			answers[i] = answer{server, images, err}
		})
	}
	asking.Wait()
	return answers
}

// errNoNode means that a server answers for no images. It has no node, or containerd has not started yet.
var errNoNode = errors.New("it imports no images")

// askOne asks one server.
func (r *Remote) askOne(ctx context.Context, server, path string) (images []Published, err error) {
	response, err := r.Servers.Get(ctx, server, path)
	if err != nil {
		return nil, fmt.Errorf("ask server %s: %w", server, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound {
		return nil, errNoNode
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask server %s: it answers %s", server, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&images); err != nil {
		return nil, fmt.Errorf("read the answer of server %s: %w", server, err)
	}
	return images, nil
}

// pull fetches an image that a server publishes, and reports whether it is complete.
func (r *Remote) pull(ctx context.Context, server string, image Published) bool {
	start := time.Now()
	err := r.tryPull(namespaces.WithNamespace(ctx, r.Store.Namespace), server, image)
	switch {
	case err == nil:
		r.Logger.Info("images: fetched an image that a server has imported", "image", image.Name, "server", server, "took",
			time.Since(start).Round(time.Millisecond))
	case ctx.Err() == nil:
		r.Logger.Warn("images: an image that a server has imported could not be fetched; a pod that wants it tries again",
			"image", image.Name, "server", server, "error", err)
	}
	return err == nil
}

// tryPull fetches the image, unpacks it, and gives it its name. The name is written last, so a pod that finds it has
// the whole image.
func (r *Remote) tryPull(ctx context.Context, server string, image Published) error {
	ctx, release, err := r.lease(ctx, image.Name)
	if err != nil {
		return err
	}
	defer func() { release(err == nil) }()
	_, err = r.Store.Client.Pull(ctx, image.Name,
		client.WithResolver(resolver{r, server, image}), client.WithPlatformMatcher(platforms.Default()), client.WithPullUnpack,
		client.WithPullSnapshotter(r.Store.Snapshotter), client.WithImageHandlerWrapper(r.handler),
		client.WithPullLabels(map[string]string{pinnedLabel: pinnedValue, serverLabel: server}))
	if err != nil || r.Store.NotifyImageAdded == nil {
		return err
	}
	return r.Store.NotifyImageAdded(ctx, image.Name)
}

// lease protects what is fetched of an image from collection. release ends the protection if the image is complete. If
// it is not, the next attempt finds what has arrived, for a day.
func (r *Remote) lease(ctx context.Context, name string) (_ context.Context, release func(complete bool), err error) {
	manager := r.Store.Client.LeasesService()
	earlier, err := manager.List(ctx, fmt.Sprintf("labels.%q==%q", leaseLabel, name))
	if err != nil {
		return ctx, nil, fmt.Errorf("list leases: %w", err)
	}
	own, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(24*time.Hour),
		leases.WithLabels(map[string]string{leaseLabel: name}))
	if err != nil {
		return ctx, nil, fmt.Errorf("take a lease: %w", err)
	}
	ctx = leases.WithLease(ctx, own.ID)
	return ctx, func(complete bool) {
		if complete {
			earlier = append(earlier, own)
		}
		for _, l := range earlier {
			_ = manager.Delete(context.WithoutCancel(ctx), l) // it would expire by itself
		}
	}, nil
}

// handler bounds how many blobs are fetched at the same time, and labels the configuration as imported. The server has
// checked that the layers are those that the configuration names.
func (r *Remote) handler(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		defer func() { <-r.slots }()
		children, err := next.Handle(ctx, d)
		if err != nil {
			r.dropWrong(ctx, d)
		}
		if err == nil && images.IsConfigType(d.MediaType) && !r.Store.Imported(ctx, d.Digest.String()) {
			err = r.Store.labelConfig(ctx, d.Digest, "true")
		}
		return children, err
	})
}

// dropWrong drops what was received of a blob if that is all of it. It has another digest then, and containerd would
// take it for the blob at each attempt.
func (r *Remote) dropWrong(ctx context.Context, d ocispec.Descriptor) {
	ctx, store, ref := context.WithoutCancel(ctx), r.Store.Client.ContentStore(), remotes.MakeRefKey(ctx, d)
	if received, err := store.Status(ctx, ref); err == nil && received.Offset >= d.Size {
		_ = store.Abort(ctx, ref) // if that fails, the next attempt tries again
	}
}

// resolver gives containerd an image that a server publishes: the index and the manifest from the server's answer, and
// blobs from that server. containerd's content store asks peers for blobs before it asks the resolver.
type resolver struct {
	remote *Remote
	server string
	image  Published
}

// Resolve implements remotes.Resolver.
func (r resolver) Resolve(context.Context, string) (string, ocispec.Descriptor, error) {
	return r.image.Name, r.image.Target, nil
}

// Fetcher implements remotes.Resolver.
func (r resolver) Fetcher(context.Context, string) (remotes.Fetcher, error) {
	return remotes.FetcherFunc(r.fetch), nil
}

// Pusher implements remotes.Resolver.
func (r resolver) Pusher(context.Context, string) (remotes.Pusher, error) {
	return nil, fmt.Errorf("push an image to a server: %w", errdefs.ErrNotImplemented)
}

// fetch returns content of the image. containerd compares its digest.
func (r resolver) fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	for _, document := range r.image.Documents {
		if digest.FromBytes(document) == d.Digest {
			return io.NopCloser(bytes.NewReader(document)), nil
		}
	}
	for range busyAttempts {
		body, err := r.get(ctx, d)
		if !errors.Is(err, errBusyServer) {
			return body, err
		}
		if !timers.Sleep(ctx, busyWait) {
			return nil, context.Cause(ctx)
		}
	}
	return nil, fmt.Errorf("fetch %s from server %s: %w", d.Digest, r.server, errBusyServer)
}

// errBusyServer means that a server sends as many blobs as it may.
var errBusyServer = errors.New("it is busy with other nodes")

// get asks the server for a blob once.
func (r resolver) get(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	ctx, end := context.WithCancel(ctx)
	timer := time.AfterFunc(stallTimeout, end)
	response, err := r.remote.Servers.Get(ctx, r.server, BlobsPath+d.Digest.String())
	if err == nil && response.StatusCode == http.StatusOK {
		return stallGuard{response.Body, end, timer}, nil
	}
	defer end()
	timer.Stop()
	if err == nil {
		defer response.Body.Close()
		if err = fmt.Errorf("it answers %s", response.Status); response.StatusCode == http.StatusServiceUnavailable {
			err = errBusyServer
		}
	}
	return nil, fmt.Errorf("fetch %s from server %s: %w", d.Digest, r.server, err)
}

// stallGuard is the body of a response. It ends the request when nothing has arrived for stallTimeout.
type stallGuard struct {
	io.ReadCloser
	end   context.CancelFunc
	timer *time.Timer
}

// Read implements io.Reader.
func (g stallGuard) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	g.timer.Reset(stallTimeout)
	return n, err
}

// Close implements io.Closer.
func (g stallGuard) Close() error {
	g.timer.Stop()
	defer g.end()
	return g.ReadCloser.Close()
}

// Unpin takes the pin of images that were fetched from a server, if that server does not publish them any more and no
// other one does. While the server does not answer, an image stays pinned: this node may have the last copy. Servers
// publish an image for ten minutes after its archive is gone.
func (r *Remote) Unpin(ctx context.Context) {
	pinned, err := r.Store.Pinned(ctx)
	if err != nil {
		r.Logger.Warn("images: which images were fetched from servers cannot be read; they stay pinned", "error", err)
		return
	}
	maps.DeleteFunc(pinned, func(_ string, from Origin) bool { return from.Server == "" })
	if len(pinned) == 0 {
		return
	}
	published, answered := map[string]bool{}, map[string]bool{} // by the images' names; by the servers'
	for _, a := range r.ask(ctx, NamesPath) {
		answered[a.server] = a.err == nil
		for _, p := range a.images {
			published[p.Name] = true
		}
	}
	for image, from := range pinned {
		if published[image] || !answered[from.Server] {
			continue
		}
		if err := r.Store.Unpin(ctx, image); err != nil {
			r.Logger.Warn("images: an image stays pinned", "image", image, "error", err)
			continue
		}
		r.Logger.Info("images: no server has this image any more: it is removed when no pod uses it and disk space is short",
			"image", image, "server", from.Server)
	}
}
