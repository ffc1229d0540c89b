// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/server/roster"
)

const (
	// sweepInterval is how often the leader searches for registrations without a Node.
	sweepInterval = 10 * time.Minute
	// orphanTime is how long a leader must have seen a registration without a Node before it deletes it: an admitted
	// machine may load images before it registers.
	orphanTime = time.Hour
)

// registrationGC deletes the registrations of machines that were admitted and are not nodes. Without a Node a
// registration protects no name (mayTakeOver), and one would remain for each name that was ever used. registrationGC
// runs on the leader.
type registrationGC struct {
	client kubernetes.Interface
	nodes  listers.NodeLister
	log    *slog.Logger
	// missingSince says since when each registration has had no Node, with its revision: if it is written again, the
	// machine has returned. RegistrationSince is not used, as it is by the clock of the server that admitted the
	// machine.
	missingSince map[string]orphan
}

type orphan struct {
	revision string
	since    time.Time
}

// RunGC deletes the registrations of machines that are not nodes, during a term.
func RunGC(ctx context.Context, t *term.Term, log *slog.Logger) error {
	nodes := t.Informers.Core().V1().Nodes()
	synced := nodes.Informer().HasSynced
	if !t.StartInformers(ctx) || !cache.WaitForCacheSync(ctx.Done(), synced) {
		return nil
	}
	c := &registrationGC{client: t.Client, nodes: nodes.Lister(), log: log,
		missingSince: map[string]orphan{}}
	for {
		if err := c.sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			c.log.Warn("the registrations of machines that have no Node could not be removed; retrying", "error", err)
		}
		if !timers.Sleep(ctx, sweepInterval) {
			return nil
		}
	}
}

func (c *registrationGC) sweep(ctx context.Context, now time.Time) error {
	secrets := c.client.CoreV1().Secrets(metav1.NamespaceSystem)
	all, err := roster.Registrations(ctx, c.client)
	if err != nil {
		return err
	}
	orphans := map[string]*corev1.Secret{}
	for i := range all {
		s := &all[i]
		node := strings.TrimSuffix(s.Name, roster.RegistrationSuffix)
		if _, err := c.nodes.Get(node); apierrors.IsNotFound(err) {
			orphans[s.Name] = s
		}
	}
	maps.DeleteFunc(c.missingSince, func(name string, _ orphan) bool { return orphans[name] == nil })
	for name, s := range orphans {
		o, known := c.missingSince[name]
		if !known || o.revision != s.ResourceVersion {
			c.missingSince[name] = orphan{s.ResourceVersion, now}
			continue
		}
		if now.Sub(o.since) < orphanTime {
			continue
		}
		// Only this revision is deleted: the machine may return at this moment.
		err := secrets.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID,
			ResourceVersion: &s.ResourceVersion}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("removing the Secret %s: %w", name, err)
		}
		c.log.Info("removed the registration of an admitted machine that has no Node", "secret", name)
		delete(c.missingSince, name)
	}
	return nil
}
