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

	"github.com/coracle-k8s/coracle/internal/lbholders"
)

const (
	// look is how often it is asked whether the nodes that answer for addresses are alive. At rest without such addresses nothing is asked.
	look = 250 * time.Millisecond
	// lateBy is by how much a look has to be late for this server to have been paused: it has heard nobody meanwhile.
	lateBy = 500 * time.Millisecond
	// settle is how long nodes get to be heard again after that.
	settle = time.Second
)

// holders is what the controller knows of who answers for which address. It belongs to the controller's goroutine.
type holders struct {
	candidates map[netip.Addr][]string
	have       *corev1.ConfigMap // as it was written or read last; nil: it has to be read
	none       bool              // nobody has ever written one
	record     lbholders.Record
	settled    bool // the last round wrote all it had to
	trustFrom  time.Time
}

// late notes that the controller woke too late.
func (h *holders) late(by time.Duration) {
	if by > lateBy {
		h.trustFrom = time.Now().Add(settle)
	}
}

// assign writes down who answers for the addresses of the pool; false says that it has to be tried again.
func (c *Controller) assign(ctx context.Context) bool {
	h := &c.holders
	if len(h.candidates) == 0 && (h.none || h.have != nil && len(h.record) == 0) || time.Now().Before(h.trustFrom) {
		return true
	}
	configMaps := c.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	if h.have == nil {
		have, err := configMaps.Get(ctx, lbholders.ConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			if h.none = len(h.candidates) == 0; h.none {
				return true
			}
			have, err = configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: lbholders.ConfigMap}}, metav1.CreateOptions{})
		}
		if err != nil {
			return c.failed(ctx, err)
		}
		record, err := lbholders.Read(have.Data)
		if err != nil { // somebody has written it by hand: all begins anew
			c.o.Logger.Warn("load balancer: what was noted of holders cannot be read, and is replaced", "error", err)
			record = lbholders.Record{}
		}
		h.have, h.record, h.none = have, record, false
	}
	serial, _ := strconv.ParseUint(h.have.ResourceVersion, 10, 64)
	next := Assign(h.record, serial, h.candidates, c.o.Alive)
	if maps.Equal(next, h.record) {
		return true
	}
	data, err := next.Write()
	if err != nil {
		return c.failed(ctx, err)
	}
	changed := h.have.DeepCopy()
	changed.Data = data
	written, err := configMaps.Update(ctx, changed, metav1.UpdateOptions{})
	if err != nil {
		h.have = nil
		return c.failed(ctx, err)
	}
	for a, now := range next {
		if before := h.record[a]; before.Node != now.Node {
			c.o.Logger.Info("load balancer: another node answers for an address", "address", a, "node", now.Node, "before", before.Node)
		}
	}
	h.have, h.record = written, next
	return true
}

func (c *Controller) failed(ctx context.Context, err error) bool {
	if ctx.Err() == nil && !apierrors.IsConflict(err) {
		c.o.Logger.Warn("load balancer: who answers for addresses could not be noted; it is tried again", "error", err)
	}
	return ctx.Err() != nil
}
