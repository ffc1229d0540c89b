// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
)

// upstreams selects the resolvers for names outside the cluster. Loopback resolvers are the last resort: usually they
// are stubs in front of the others, but this process, unlike a pod, can reach them. clusterIPs are addresses that would
// lead back here. CoreDNS cannot use an address with a zone. At most three servers are returned, as many as hosts use.
func upstreams(servers, clusterIPs []netip.Addr) []netip.AddrPort {
	var out, loopback []netip.AddrPort
	for _, a := range servers {
		switch {
		case a.IsUnspecified() || a.Zone() != "" || slices.Contains(clusterIPs, a):
		case a.IsLoopback():
			loopback = append(loopback, netip.AddrPortFrom(a, 53))
		default:
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	if len(out) == 0 {
		out = loopback
	}
	return out[:min(len(out), 3)]
}

// settleTime is how long to wait after a file has changed until it is read: writers truncate first.
const settleTime = 300 * time.Millisecond

// resolverWatch follows the files that name the host's resolvers.
type resolverWatch struct {
	o       Options
	log     klog.Logger
	files   *filewatch.Watcher
	changes chan []netip.AddrPort // unbuffered: Run takes one value at a time, the latest
	done    chan struct{}
}

// watchResolvers starts a goroutine that ends with ctx. close waits for it.
func watchResolvers(ctx context.Context, o Options, log klog.Logger) *resolverWatch {
	files := filewatch.New(filewatch.Options{What: "the host's resolvers", Board: o.Board, Logger: slog.New(logr.ToSlogHandler(log)),
		New: o.newWatcher})
	w := &resolverWatch{o: o, log: log, files: files, changes: make(chan []netip.AddrPort), done: make(chan struct{})}
	w.follow()
	go w.run(ctx)
	return w
}

func (w *resolverWatch) close() {
	<-w.done
	w.files.Close()
}

func (w *resolverWatch) run(ctx context.Context) {
	defer close(w.done)
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-w.files.Events():
			if due == nil && w.isWatched(e.Name) {
				due = time.After(settleTime)
			}
			continue
		case err := <-w.files.Errors():
			w.log.Info("Watching the host's resolvers failed", "err", err)
			continue
		case <-w.files.Poll():
		case <-due:
		}
		due = nil
		w.follow()
		select {
		case <-ctx.Done():
			return
		case w.changes <- w.current():
		}
	}
}

// paths lists the files to watch: the configured ones, and the targets of those that are links.
func (w *resolverWatch) paths() []string {
	paths := slices.Clone(resolvconf.HostFiles)
	if w.o.ResolvConf != "" {
		paths = []string{w.o.ResolvConf}
	}
	for _, p := range slices.Clone(paths) {
		if target, err := filepath.EvalSymlinks(p); err == nil && target != p {
			paths = append(paths, target)
		}
	}
	return paths
}

func (w *resolverWatch) isWatched(name string) bool { return slices.Contains(w.paths(), name) }

// follow watches the folders of the files, since files are replaced by renaming.
func (w *resolverWatch) follow() {
	for _, p := range w.paths() {
		w.files.Add(filepath.Dir(p))
	}
}

// current reads the resolvers to use now. It returns none when the host has none.
func (w *resolverWatch) current() []netip.AddrPort {
	path := w.o.ResolvConf
	if path == "" {
		path = resolvconf.Choose(resolvconf.HostFiles)
	}
	servers, err := resolvconf.Servers(path)
	if err != nil {
		w.log.Info("Names outside the cluster cannot be resolved", "err", err)
	}
	return upstreams(servers, w.o.ClusterDNS)
}
