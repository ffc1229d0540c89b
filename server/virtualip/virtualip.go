// SPDX-License-Identifier: Apache-2.0

// Package virtualip follows the cluster's virtual addresses on a server, and announces them while this server leads.
// The protocol itself is in package vip.
//
// Its goroutines: the watch of one ConfigMap; every 10 s where there is an address; on the leader two announcements for
// each address, of which one ends after 10 s.
package virtualip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/vip"
)

const (
	// followRetry is the pause before the cluster's virtual addresses are read again, at a first start and after an
	// error.
	followRetry = time.Second
	// conflictRetry is that pause when another machine has the address, which only a person can change.
	conflictRetry = 15 * time.Second
	// handoverTime is how long a stopping server continues to serve after another one began to announce: its clients
	// need to have received the announcement.
	handoverTime = 300 * time.Millisecond
)

// Options are New's parameters.
type Options struct {
	// Dir is the server's folder, with a file that has a copy of the addresses.
	Dir string
	// Configured are the addresses that were configured on this server. The cluster's addresses take precedence.
	// Interface is the interface for announcements. Empty means the interface whose network contains them.
	Configured []netip.Addr
	Interface  string
	// BindAddress and Port are where the API server listens. A nil address means all addresses.
	BindAddress net.IP
	Port        string
	// Reserved are the networks in which no machine has an address.
	Reserved []netip.Prefix
	// Redirect replaces all of the machine's translations of virtual addresses (vip.SetRedirects). Nil changes nothing
	// on the machine.
	Redirect func([]vip.Redirect) error
	// Use updates the certificate and the kubeconfigs with the addresses of Current.
	Use func() error
	// Machines returns the members of the gossip.
	Machines func() []gossip.Info

	Board  *status.Board // may be nil
	Logger *slog.Logger
}

// Addresses are the cluster's virtual addresses, as this server knows them. They are in the ConfigMap
// clusterconfig.VIPConfigMap. A file has a copy, so that certificate and kubeconfigs are right from the start. The
// leader announces them (holder).
type Addresses struct {
	o Options

	mu        sync.Mutex
	addresses []netip.Addr
	// fromCluster says that the addresses are the cluster's, and not only those of this server's flag.
	fromCluster bool
	// problem is why the cluster's addresses cannot be applied, empty if they are.
	problem string
	// begun says that new addresses were stored, but not yet everything that follows from them was done.
	begun bool
	// unproven are addresses that the cluster got while this process ran. They are probed in the network before they
	// are announced. Older addresses are not: another server may announce them.
	unproven map[netip.Addr]bool
	probed   []netip.Addr  // probed by this server before it published them
	changed  timers.Signal // sent when the holder has to reconcile

	routers func() ([]netip.Addr, error) // nil means vip.Routers
}

// New reads the file. It starts nothing.
func New(o Options) (*Addresses, error) {
	addresses, known, err := clusterconfig.ReadVIPs(o.Dir)
	if err != nil {
		return nil, err
	}
	if !known {
		addresses = o.Configured
	}
	return &Addresses{o: o, addresses: addresses, fromCluster: known, unproven: map[netip.Addr]bool{}, changed: timers.NewSignal()}, nil
}

// Current returns the addresses for which certificates are made.
func (v *Addresses) Current() []netip.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.addresses)
}

// ClusterAddresses returns the addresses in the cluster's ConfigMap. It returns none while only this server's flag is
// known.
func (v *Addresses) ClusterAddresses() []netip.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.fromCluster {
		return nil
	}
	return slices.Clone(v.addresses)
}

// IPs returns the same addresses as Current.
func (v *Addresses) IPs() []net.IP {
	var out []net.IP
	for _, a := range v.Current() {
		out = append(out, a.AsSlice())
	}
	return out
}

// API is the part of the API server that Addresses use.
type API interface {
	Ready() <-chan struct{}
	LoopbackConfig() *rest.Config
}

// Run follows the cluster's addresses, and announces them while this server leads, until ctx is done.
func (v *Addresses) Run(ctx context.Context, api API, store Store, leadership <-chan raftstore.Leadership) {
	select {
	case <-ctx.Done():
		return
	case <-api.Ready():
	}
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { v.follow(ctx, api.LoopbackConfig()) })
	newHolder(v, store).run(ctx, leadership)
}

// SleepUntilMoved waits, after a leadership transfer, until the new leader announces the addresses. This server's API
// serves in the meantime.
func (v *Addresses) SleepUntilMoved() {
	if len(v.ClusterAddresses()) > 0 {
		time.Sleep(leaderWait + handoverTime) // the other server waits as long, and there is no event when it begins
	}
}

// ClearRedirects removes the nftables rules that an earlier, killed process of this server left for the virtual
// addresses. Until this process serves, another server gets the traffic to them.
func (v *Addresses) ClearRedirects() {
	if v.o.Redirect == nil {
		return
	}
	if err := v.o.Redirect(nil); err != nil {
		v.o.Logger.Warn("the nftables translations for virtual addresses of an earlier process could not be removed; retrying "+
			"when the API serves", "error", err)
	}
}

// follow keeps the addresses equal to those in the API until ctx is done.
func (v *Addresses) follow(ctx context.Context, config *rest.Config) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "vip"))
	if err != nil {
		v.reportFailure(fmt.Errorf("making the client for the cluster's virtual addresses: %w", err))
		return
	}
	for ctx.Err() == nil {
		pause := followRetry
		err := v.Watch(ctx, client)
		var used *vip.InUseError
		switch {
		case errors.As(err, &used):
			pause = conflictRetry
			v.reportFailure(err)
		case err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err): // not found: the namespace, at a first start
			v.reportFailure(err)
		}
		timers.Sleep(ctx, pause)
	}
}

// reportFailure shows and logs why the cluster's addresses cannot be applied.
func (v *Addresses) reportFailure(err error) {
	v.mu.Lock()
	again := v.problem == err.Error()
	v.problem = err.Error()
	v.mu.Unlock()
	if !again {
		v.o.Logger.Warn("the cluster's virtual addresses could not be applied on this server; retrying", "error", err)
		v.changed.Send()
	}
}

// Watch applies the cluster's addresses and follows their changes until the watch ends. If the cluster has none yet,
// the addresses of this server's flag become the cluster's. The watch begins at the revision of a list: the ConfigMap's
// own revision may be compacted already.
func (v *Addresses) Watch(ctx context.Context, client kubernetes.Interface) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, clusterconfig.VIPConfigMap).String()}
	found, err := maps.List(ctx, only)
	switch {
	case err != nil:
		return err
	case len(found.Items) > 0:
		err = v.apply(ctx, client, &found.Items[0])
	case len(v.o.Configured) > 0:
		if err := v.publish(ctx, client); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		return v.Watch(ctx, client)
	default:
		err = v.applyAddresses(nil, false)
	}
	if err != nil {
		return err
	}
	only.ResourceVersion = found.ResourceVersion
	w, err := maps.Watch(ctx, only)
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, open := <-w.ResultChan():
			m, ok := event.Object.(*corev1.ConfigMap)
			if !open || !ok || event.Type == "DELETED" {
				return nil // the caller lists again
			}
			if err := v.apply(ctx, client, m); err != nil {
				return err
			}
		}
	}
}

// publish makes the addresses of this server's flag the cluster's, if no machine has them.
func (v *Addresses) publish(ctx context.Context, client kubernetes.Interface) error {
	if err := Check(ctx, v.o.Configured, v.o.Interface, v.o.Reserved); err != nil {
		return err
	}
	if err := v.checkUnused(ctx, client, v.o.Configured); err != nil {
		return err
	}
	v.mu.Lock()
	v.probed = v.o.Configured
	v.mu.Unlock()
	_, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: clusterconfig.VIPConfigMap,
			Labels: map[string]string{roster.ManagedBy: "coracle"}},
		Data: map[string]string{clusterconfig.VIPData: Format(v.o.Configured)},
	}, metav1.CreateOptions{})
	return err
}

// Check returns an error unless addresses can be announced on this machine and no other machine has them. It takes
// about a second for each.
func Check(ctx context.Context, addresses []netip.Addr, on string, reserved []netip.Prefix) error {
	links, err := vip.Links()
	if err != nil {
		return err
	}
	for _, a := range addresses {
		err := vip.Check(a, reserved)
		if err == nil {
			err = notRouters([]netip.Addr{a}, vip.Routers)
		}
		var place vip.Interface
		if err == nil {
			place, err = vip.Find(links, a, on)
		}
		if err == nil {
			err = vip.Probe(ctx, place, a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// apply applies the addresses in the ConfigMap. It checks them, so that a user who may write the ConfigMap cannot make
// this machine announce another machine's address.
func (v *Addresses) apply(ctx context.Context, client kubernetes.Interface, m *corev1.ConfigMap) error {
	const how = "the ConfigMap %s/%s: %w; write it with: coracle vip set ADDRESS"
	addresses, err := Parse(m.Data[clusterconfig.VIPData], v.o.Reserved)
	if err != nil {
		return fmt.Errorf(how, m.Namespace, m.Name, err)
	}
	had := v.ClusterAddresses()
	fresh := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(had, a) })
	if err := v.checkUnused(ctx, client, fresh); err != nil {
		return fmt.Errorf(how, m.Namespace, m.Name, err)
	}
	if err := v.applyAddresses(addresses, true); err != nil {
		return err
	}
	if own := v.o.Configured; len(own) > 0 && !slices.Equal(own, addresses) {
		v.reportFailure(fmt.Errorf("--vip: this server was given %q, but its cluster has %q; remove the flag",
			Format(own), Format(addresses)))
		return nil
	}
	v.clearError()
	return nil
}

// needsProbe says whether an address has to be probed before it is announced.
func (v *Addresses) needsProbe(a netip.Addr) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.unproven[a]
}

// setProbed records that no other machine has an address.
func (v *Addresses) setProbed(a netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.unproven, a)
}

// Parse parses a list of addresses with commas.
func Parse(text string, reserved []netip.Prefix) ([]netip.Addr, error) {
	var out []netip.Addr
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		a, err := netip.ParseAddr(word)
		if err != nil {
			return nil, fmt.Errorf("%q is not an IP address", word)
		}
		if err := vip.Check(a, reserved); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(have netip.Addr) bool { return have.Is4() == a.Is4() }) {
			return nil, fmt.Errorf("%q: at most one IPv4 and one IPv6 address", text)
		}
		out = append(out, a)
	}
	return out, nil
}

// Format writes addresses in the form that Parse reads.
func Format(addresses []netip.Addr) string {
	return strings.Join(clusterconfig.Strings(addresses), ",")
}

// applyAddresses stores addresses and updates the file, the certificate and the kubeconfigs. Steps that failed are
// repeated by the next call. known says that the addresses are the cluster's.
func (v *Addresses) applyAddresses(addresses []netip.Addr, known bool) error {
	v.mu.Lock()
	same := slices.Equal(v.addresses, addresses) && v.fromCluster == known
	done := same && !v.begun
	unproven := map[netip.Addr]bool{}
	for _, a := range addresses {
		had := v.fromCluster && slices.Contains(v.addresses, a) || slices.Contains(v.probed, a)
		if known && (v.unproven[a] || !had) {
			unproven[a] = true
		}
	}
	v.unproven = unproven
	v.addresses, v.fromCluster, v.begun = addresses, known, !done
	v.mu.Unlock()
	if done {
		return nil
	}
	defer v.changed.Send()
	keep := func() error { return clusterconfig.WriteVIPs(v.o.Dir, addresses) }
	if !known {
		keep = func() error { return clusterconfig.RemoveVIPs(v.o.Dir) }
	} else if !same {
		v.o.Logger.Info("the cluster's virtual addresses", "addresses", Format(addresses))
	}
	if err := errors.Join(keep(), v.o.Use()); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begun = false
	return nil
}

func (v *Addresses) clearError() {
	v.mu.Lock()
	was := v.problem != ""
	v.problem = ""
	v.mu.Unlock()
	if was {
		v.changed.Send()
	}
}

// redirects returns the translations for addresses that have an interface here.
func (v *Addresses) redirects(places map[netip.Addr]vip.Interface) ([]vip.Redirect, error) {
	port, err := strconv.ParseUint(v.o.Port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("the API server's port: %w", err)
	}
	var out []vip.Redirect
	for _, a := range v.ClusterAddresses() {
		p, ok := places[a]
		if !ok {
			continue
		}
		to := p.Own
		if bound, ok := netip.AddrFromSlice(v.o.BindAddress); ok && !bound.IsUnspecified() {
			if to = bound.Unmap(); to.Is4() != a.Is4() {
				return nil, fmt.Errorf("%s is of another address family than --bind-address %s, where the API server listens", a, to)
			}
		}
		out = append(out, vip.Redirect{Address: a, Port: uint16(port), To: to})
	}
	return out, nil
}
