// SPDX-License-Identifier: Apache-2.0

// Package manifests applies the YAML and JSON files of a folder to the cluster, and deletes objects that were removed
// from the files.
//
// A file is read as a whole: a malformed one changes nothing. Its objects are applied by server-side apply, which
// writes nothing where nothing differs. An object that is no longer in its file is deleted, also after restarts. For
// that each file has an inventory of what it applied: a ConfigMap in kube-system. Inventories are written before
// objects, so that a crash never leaves an object without an inventory.
//
// The package owns the inventories, and the objects with its annotation. It deletes nothing else, and no object that is
// in another file of the folder. It runs on the leader. An inventory names the server whose folder had the file. Only
// on that server a missing file counts as removed.
package manifests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/internal/recorder"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// fieldManager is the field manager of applied objects.
	fieldManager = "coracle-manifests"

	resyncEvery = 5 * time.Minute // in case the kernel reported no change: network file systems
	settleDelay = 300 * time.Millisecond
	firstRetry  = time.Second
	lastRetry   = time.Minute
)

// Options are New's parameters.
type Options struct {
	// Dir is the folder. It is made when missing. Files *.yaml, *.yml and *.json in it and its subfolders are applied,
	// except hidden ones, and those for which there is a file of the same name with .skip appended.
	Dir string
	// ServerID is this server's ID, which inventories name.
	ServerID string
	// Config is a client configuration with an administrator's rights.
	Config *rest.Config
	// Want, when set, is called with kinds that files use and the cluster does not know. It says whether a kind is
	// about to be served.
	Want func(schema.GroupKind) bool
	// Part, when set, shows in coracle status which files have errors.
	Part *status.Part
	// Board, when set, has a line while changes of the folder are not noticed at once.
	Board *status.Board
	// Logger logs what was applied, and errors. Nil means slog's default.
	Logger *slog.Logger

	newNotices func() (*fsnotify.Watcher, error) // only set in tests; nil means fsnotify's
}

// Manifests applies a folder to the cluster.
type Manifests struct {
	o       Options
	log     *slog.Logger
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	events  record.EventRecorder
	disco   discovery.DiscoveryInterface
	// mapper exists only during a round: its cache takes megabytes and is stale by the next round.
	mapper meta.ResettableRESTMapper

	inventories map[string]*inventory // by file: what is in the cluster
	files       map[string]*file      // by file: the state in this run
}

// file is the state of a manifest file since this process started.
type file struct {
	hash    string
	objects []object // nil while malformed
	// settled says that the file was applied or is malformed, so that nothing is done until its content changes.
	settled bool
	// retry is the time of the next attempt, which is a pause of wait after the last.
	retry time.Time
	wait  time.Duration
	// reported is the last error that was logged, so that it is not logged again.
	reported string
}

// New makes the clients. It starts nothing.
func New(o Options) (*Manifests, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	config := rest.AddUserAgent(rest.CopyConfig(o.Config), "manifests")
	m := &Manifests{o: o, log: o.Logger, inventories: map[string]*inventory{}, files: map[string]*file{}}
	var errs [3]error
	m.kube, errs[0] = kubernetes.NewForConfig(config)
	m.dynamic, errs[1] = dynamic.NewForConfig(config)
	m.disco, errs[2] = discovery.NewDiscoveryClientForConfig(config)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("making clients for the manifests: %w", err)
	}
	return m, nil
}

// Run applies the folder to the cluster until ctx is done. An error of a file is logged, reported as an Event, and the
// file is tried again. Run continues with the others.
func (m *Manifests) Run(ctx context.Context) error {
	if err := os.MkdirAll(m.o.Dir, 0o700); err != nil {
		m.log.Error("manifests are not applied: their folder cannot be made", "folder", m.o.Dir, "error", err)
		m.o.Part.Set(status.Degraded, "their folder cannot be made: "+err.Error())
		<-ctx.Done()
		return nil
	}
	m.events = recorder.New(ctx, m.kube, fieldManager)
	w := newWatcher(m.o)
	defer w.close()
	timers.Retry(ctx, m.log, firstRetry, "what earlier manifests applied cannot be read yet; retrying",
		func() error { return m.loadInventories(ctx) })
	for ctx.Err() == nil {
		next := m.syncFolder(ctx)
		m.showErrors()
		w.wait(ctx, next)
	}
	m.o.Part.Set(status.Waiting, "")
	return nil
}

// showErrors writes the files with errors to the status.
func (m *Manifests) showErrors() {
	var troubles []string
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
		if t := m.files[name].reported; t != "" {
			troubles = append(troubles, t)
		}
	}
	if len(troubles) == 0 {
		m.o.Part.Set(status.Running, "")
		return
	}
	m.o.Part.Set(status.Degraded, strings.Join(troubles, "; "))
}

// syncFolder applies and prunes as far as possible now. It returns the longest pause until the next round.
func (m *Manifests) syncFolder(ctx context.Context) time.Duration {
	found, err := scan(m.o.Dir)
	if err != nil {
		// Only with a complete list can a file count as removed.
		m.log.Warn("the manifests' folder cannot be read completely; nothing is changed until it can", "error", err)
		return lastRetry
	}
	m.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(m.disco))
	defer func() { m.mapper = nil }()
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if s := found[name]; !s.skip {
			m.read(ctx, name, s)
		}
	}
	for name := range m.files {
		if s, ok := found[name]; !ok || s.skip {
			delete(m.files, name)
		}
	}
	for _, name := range m.order() {
		if f := m.files[name]; f.objects != nil && !f.settled && !time.Now().Before(f.retry) && ctx.Err() == nil {
			m.applyFile(ctx, name, f)
		}
	}
	prunedAll := m.prune(ctx, found)
	next := resyncEvery
	if !prunedAll {
		next = lastRetry
	}
	for _, f := range m.files {
		if !f.settled {
			next = min(next, max(0, time.Until(f.retry)))
		}
	}
	return next
}

// order returns the files in the order in which they are applied: first those with CRDs or namespaces, then by name.
func (m *Manifests) order() []string {
	last := func(name string) int {
		if slices.ContainsFunc(m.files[name].objects, func(o object) bool { return applyRank(o) != rankOther }) {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Keys(m.files), func(a, b string) int {
		return cmp.Or(last(a)-last(b), strings.Compare(a, b))
	})
}

// read parses a file whose content has changed.
func (m *Manifests) read(ctx context.Context, name string, s source) {
	f := m.files[name]
	if f != nil && f.hash == s.hash {
		return
	}
	f = &file{hash: s.hash}
	m.files[name] = f
	objects, err := parse(name, s.data)
	if s.err != nil {
		err = fmt.Errorf("%s: %w", name, s.err)
	}
	if err != nil {
		f.settled = true // until its content changes
		m.report(ctx, name, f, "Malformed", fmt.Errorf("%w. Nothing of this file was applied or deleted", err))
		return
	}
	f.objects = objects
}

// scheduleRetry schedules another attempt for a file, later each time.
func (f *file) scheduleRetry() {
	f.wait = min(max(2*f.wait, firstRetry), lastRetry)
	f.retry = time.Now().Add(f.wait)
}
