//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// says waits until a command on a server's machine says something, whatever its exit code is.
func says(t *testing.T, s *harness.Server, want string, args ...string) string {
	t.Helper()
	var said string
	harness.Eventually(t, soon, fmt.Sprintf("coracle %s says %q", strings.Join(args, " "), want), func() error {
		out, err := s.Run(s.Coracle(), append(args, "--data-dir", s.DataDir)...)
		if said = out; !strings.Contains(out, want) {
			return fmt.Errorf("%w, and:\n%s", err, out)
		}
		return nil
	})
	return said
}

// TestLostMajority: one of three servers is left. It lives on, also when it is restarted, says what is the matter,
// and is made the only server by one command; a new one and one of the lost ones that was emptied join it. What it had
// is there all along. What was acknowledged by the two others alone, and had not reached it when they ended, may be
// lost: the command says so. An informer that has seen it comes to have what the server has that is left.
func TestLostMajority(t *testing.T) {
	besideOthers(t)
	c := New(t, 3, 1)
	x := startClients(t, c, "load", "")
	x.some(t)
	left := c.Servers[2]
	lost := c.Servers[:2]
	names := x.names()
	harness.Eventually(t, soon, "the server that will be left has what was acknowledged so far", func() error { return x.has(t, left, names) })
	seen := c.informer(t, c.Agents[0], x.ns)
	c.Site.CutOff(left.Machine)
	var list *corev1.ConfigMapList
	harness.Eventually(t, soon, "what was written before the server was cut off", func() (err error) {
		list, err = c.Ask(lost[0]).CoreV1().ConfigMaps(x.ns).List(t.Context(), metav1.ListOptions{})
		return err
	})
	harness.Eventually(t, soon, "the informer sees writes that do not reach the server that will be left", func() error {
		if n := len(seen.GetStore().ListKeys()) - len(list.Items); n < lostWrites {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	release := seen.hold()
	for _, s := range lost {
		s.PowerOff()
	}
	x.stop()
	c.Site.Heal()

	alone := 5 * time.Second
	if whole {
		alone = 10 * time.Minute
	}
	time.Sleep(alone) // that nothing happens in a time has no event that ends it
	testenv.NoError(t, left.Alive())
	const noLeader = "there is no leader"
	t.Log(says(t, left, noLeader, "store", "status"))
	left.Kill()
	left.Start()
	t.Log(says(t, left, noLeader, "store", "status"))
	t.Log(says(t, left, "no other server answers", "status"))
	testenv.NoError(t, left.Alive())

	testenv.Check(t, left.Stop(), "a server without a majority cannot be stopped")
	t.Log(says(t, left, "--yes", "store", "recover"))
	began := time.Now()
	said, err := left.Run(left.Coracle(), "store", "recover", "--yes", "--data-dir", left.DataDir)
	testenv.NoError(t, err, "%s", said)
	t.Log(said)
	left.Start()
	c.Servers = []*harness.Server{left}
	harness.Eventually(t, soon, "the only server serves and has all", func() error { return x.has(t, left, names) })
	t.Logf("the API is back %v after coracle store recover began", time.Since(began).Round(100*time.Millisecond))
	harness.Eventually(t, soon, "the node is ready", func() error { return c.nodesReady(t.Context(), c.Ask(left)) })
	api := c.Ask(left).CoreV1().ConfigMaps(x.ns)
	harness.Eventually(t, soon, "a write at the only server", func() error {
		_, err := api.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{})
		return unlessThere(err)
	})
	harness.Eventually(t, soon, "the agent's balancer reaches the only server", func() error {
		_, err := c.Client(c.Agents[0].Machine, balanced, askTimeout).CoreV1().ConfigMaps(x.ns).Get(t.Context(), "after", metav1.GetOptions{})
		return err
	})
	list = testenv.Must(api.List(t.Context(), metav1.ListOptions{}))(t)
	missing, extra := seen.compare(list)
	t.Logf("the informer, at revision %s, lacks %d objects of the only server, at revision %s, and has %d that are not there",
		seen.LastSyncResourceVersion(), missing, list.ResourceVersion, extra)
	testenv.True(t, missing > 0 && extra >= lostWrites, "the informer has nothing that is lost: this shows nothing")
	release()
	harness.Eventually(t, soon, "the informer has what the only server has", func() error {
		list, err := api.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if missing, extra := seen.compare(list); missing > 0 || extra > 0 {
			return fmt.Errorf("it lacks %d objects, and has %d that are not there", missing, extra)
		}
		return nil
	})

	// One of the lost ones comes back without its store, and one on a machine that is new.
	back := lost[0]
	back.PowerOn()
	testenv.NoError(t, os.RemoveAll(filepath.Join(back.DataDir, "server", "store")))
	back.Start()
	c.Servers = append(c.Servers, back)
	c.Join()
	c.WaitWhole()
	x.allHave(t, names)
}

// lostWrites is how many writes the server that is left lacks at the least. It makes fewer itself when it starts: the
// informer would be ahead of it without a revision leap.
const lostWrites = 100

// informer is client-go's of the ConfigMaps of a namespace. It lists again where a watch cannot be begun. So its watch
// can be held until one can be, and each request has a connection of its own, which no lost server has ended.
type informer struct {
	cache.SharedInformer
	mu    sync.Mutex
	watch watch.Interface
}

// informer starts one through an agent's balancer, and waits until it has listed.
func (c *Cluster) informer(t *testing.T, a *harness.Server, ns string) *informer {
	t.Helper()
	api := func() typed.ConfigMapInterface { return c.Client(a.Machine, balanced, 0).CoreV1().ConfigMaps(ns) }
	i := &informer{}
	i.SharedInformer = cache.NewSharedInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api().List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (_ watch.Interface, err error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.watch, err = api().Watch(ctx, o)
			return i.watch, err
		},
	}, &corev1.ConfigMap{}, 0)
	go i.RunWithContext(t.Context())
	testenv.Until(t, soon, "the informer has listed", i.HasSynced)
	return i
}

// hold ends the watch. The informer's next one, which goes on at the revision that it has seen, waits for release.
func (i *informer) hold() (release func()) {
	i.mu.Lock()
	i.watch.Stop()
	return i.mu.Unlock
}

// compare returns how many objects of a list the informer does not have as they are, and how many it has beside them.
func (i *informer) compare(list *corev1.ConfigMapList) (missing, extra int) {
	store := i.GetStore()
	there := map[string]bool{}
	for _, m := range list.Items {
		key := m.Namespace + "/" + m.Name
		there[key] = true
		has, ok, _ := store.GetByKey(key)
		if !ok || has.(*corev1.ConfigMap).ResourceVersion != m.ResourceVersion {
			missing++
		}
	}
	for _, key := range store.ListKeys() {
		if !there[key] {
			extra++
		}
	}
	return missing, extra
}

// allHave waits until each server has all of the ConfigMaps.
func (x *clients) allHave(t *testing.T, names []string) {
	t.Helper()
	for _, s := range x.c.Servers {
		harness.Eventually(t, soon, fmt.Sprintf("server %d has all of %d writes", s.Number, len(names)), func() error { return x.has(t, s, names) })
	}
}

// has fails unless a server has all of the ConfigMaps.
func (x *clients) has(t *testing.T, s *harness.Server, names []string) error {
	list, err := x.c.Ask(s).CoreV1().ConfigMaps(x.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return errors.Join(err, s.Alive())
	}
	there := map[string]bool{}
	for i := range list.Items {
		there[list.Items[i].Name] = true
	}
	var lost []string
	for _, n := range names {
		if !there[n] {
			lost = append(lost, n)
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("server %d has lost %d of %d acknowledged writes: %v", s.Number, len(lost), len(names), lost[:min(len(lost), 5)])
	}
	return nil
}
