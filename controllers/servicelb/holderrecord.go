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
	// livenessPoll is the interval of checks whether the nodes that announce addresses are alive. Without such
	// addresses there are no checks.
	livenessPoll = 250 * time.Millisecond
	// pauseThreshold is how late a poll must be to show that this server was paused, and received nothing meanwhile.
	pauseThreshold = 500 * time.Millisecond
	// rereadInterval is the interval at which the record of holders is read again while pools' addresses are in use. If
	// a client has deleted the record, no node would announce the addresses any more.
	rereadInterval = 10 * time.Second
	// pauseRecovery is how long nodes need to report again after a pause of this server.
	pauseRecovery = time.Second
)

// holders is the controller's state of which node announces which address. The controller's goroutine owns it.
type holders struct {
	candidates   map[netip.Addr][]string
	reports      holderReports
	have         *corev1.ConfigMap // as last written or read; nil if it has to be read
	read         time.Time         // the time of have
	neverWritten bool              // no record was ever written
	record       loadbalancer.Holders
	settled      bool // the last round wrote everything
	trustFrom    time.Time
}

// noteDelay notes by how much the controller woke too late. If that shows a pause of this server, assignHolders writes
// nothing for the time pauseRecovery.
func (h *holders) noteDelay(by time.Duration) {
	if by > pauseThreshold {
		h.trustFrom = time.Now().Add(pauseRecovery)
	}
}

// assignHolders writes which nodes announce the addresses of the pools. It returns false if it has to be tried again.
func (c *Controller) assignHolders(ctx context.Context) bool {
	h := &c.holders
	if len(h.candidates) == 0 && (h.neverWritten || h.have != nil && len(h.record) == 0) || time.Now().Before(h.trustFrom) {
		return true
	}
	if err := c.loadRecord(ctx); err != nil {
		return c.recordFailed(ctx, err)
	}
	if h.have == nil {
		return true
	}
	serial, _ := strconv.ParseUint(h.have.ResourceVersion, 10, 64)
	next := Assign(h.record, serial, h.candidates, c.o.Alive, h.reports)
	if maps.Equal(next, h.record) {
		return true
	}
	data, err := next.Write()
	if err != nil {
		return c.recordFailed(ctx, err)
	}
	changed := h.have.DeepCopy()
	changed.Data = data
	written, err := c.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, changed, metav1.UpdateOptions{})
	if err != nil {
		h.have = nil
		return c.recordFailed(ctx, err)
	}
	for a, now := range next {
		if before := h.record[a]; before.Node != now.Node {
			c.o.Logger.Info("load balancer: another node answers for an address", "address", a, "node", now.Node, "before", before.Node)
		}
	}
	h.have, h.record, h.read = written, next, time.Now()
	return true
}

// loadRecord reads the record if that is necessary. It creates a missing record when an address needs one.
func (c *Controller) loadRecord(ctx context.Context) error {
	h := &c.holders
	rests := len(h.candidates) == 0
	if h.neverWritten && rests || h.have != nil && (rests || time.Since(h.read) < rereadInterval) {
		return nil
	}
	configMaps := c.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	have, err := configMaps.Get(ctx, loadbalancer.ConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if h.neverWritten = rests; h.neverWritten {
			return nil
		}
		have, err = configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem,
			Name: loadbalancer.ConfigMap}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	record, err := loadbalancer.Read(have.Data)
	if err != nil { // a user wrote it: begin with an empty record
		c.o.Logger.Warn("load balancer: what was noted of holders cannot be read, and is replaced", "error", err)
		record = loadbalancer.Holders{}
	}
	h.have, h.record, h.neverWritten, h.read = have, record, false, time.Now()
	return nil
}

// recordFailed logs that the record could not be read or written. It returns true if ctx is done.
func (c *Controller) recordFailed(ctx context.Context, err error) bool {
	if ctx.Err() == nil && !apierrors.IsConflict(err) {
		c.o.Logger.Warn("load balancer: who answers for addresses could not be noted; it is tried again", "error", err)
	}
	return ctx.Err() != nil
}
