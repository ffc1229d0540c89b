// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"maps"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

const (
	// livenessPoll is how often it is asked whether the nodes that answer for addresses are alive. At rest without such
	// addresses nothing is asked.
	livenessPoll = 250 * time.Millisecond
	// pauseThreshold is by how much a poll has to be late for this server to have been paused: it has received nothing
	// meanwhile.
	pauseThreshold = 500 * time.Millisecond
	// reread is how often the record is read again while there are such addresses: a client may have deleted it, and
	// no node would answer any more.
	reread = 10 * time.Second
	// settle is how long nodes get to be heard again after that.
	settle = time.Second
)

// holders is what the controller knows of who answers for which address. It belongs to the controller's goroutine.
type holders struct {
	candidates map[netip.Addr][]string
	said       said
	have       *corev1.ConfigMap // as it was written or read last; nil: it has to be read
	read       time.Time         // when it was
	none       bool              // none was ever written
	record     loadbalancer.Holders
	settled    bool // the last round wrote all it had to
	trustFrom  time.Time
}

// noteDelay notes that the controller woke too late.
func (h *holders) noteDelay(by time.Duration) {
	if by > pauseThreshold {
		h.trustFrom = time.Now().Add(settle)
	}
}

// assign writes down who answers for the addresses of the pool; false says that it has to be tried again.
func (c *Controller) assign(ctx context.Context) bool {
	h := &c.holders
	if len(h.candidates) == 0 && (h.none || h.have != nil && len(h.record) == 0) || time.Now().Before(h.trustFrom) {
		return true
	}
	if err := c.load(ctx); err != nil {
		return c.failed(ctx, err)
	}
	if h.have == nil {
		return true
	}
	serial, _ := strconv.ParseUint(h.have.ResourceVersion, 10, 64)
	next := Assign(h.record, serial, h.candidates, c.o.Alive, h.said)
	if maps.Equal(next, h.record) {
		return true
	}
	data, err := next.Write()
	if err != nil {
		return c.failed(ctx, err)
	}
	changed := h.have.DeepCopy()
	changed.Data = data
	written, err := c.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, changed, metav1.UpdateOptions{})
	if err != nil {
		h.have = nil
		return c.failed(ctx, err)
	}
	for a, now := range next {
		if before := h.record[a]; before.Node != now.Node {
			c.o.Logger.Info("load balancer: another node answers for an address", "address", a, "node", now.Node, "before", before.Node)
		}
	}
	h.have, h.record, h.read = written, next, time.Now()
	return true
}

// load reads the record, if that has to be. It is made when there is none and an address needs it.
func (c *Controller) load(ctx context.Context) error {
	h := &c.holders
	rests := len(h.candidates) == 0
	if h.none && rests || h.have != nil && (rests || time.Since(h.read) < reread) {
		return nil
	}
	configMaps := c.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	have, err := configMaps.Get(ctx, loadbalancer.ConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if h.none = rests; h.none {
			return nil
		}
		have, err = configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem,
			Name: loadbalancer.ConfigMap}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	record, err := loadbalancer.Read(have.Data)
	if err != nil { // it was written by hand: all begins again
		c.o.Logger.Warn("load balancer: what was noted of holders cannot be read, and is replaced", "error", err)
		record = loadbalancer.Holders{}
	}
	h.have, h.record, h.none, h.read = have, record, false, time.Now()
	return nil
}

func (c *Controller) failed(ctx context.Context, err error) bool {
	if ctx.Err() == nil && !apierrors.IsConflict(err) {
		c.o.Logger.Warn("load balancer: who answers for addresses could not be noted; it is tried again", "error", err)
	}
	return ctx.Err() != nil
}
