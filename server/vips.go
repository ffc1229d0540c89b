// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
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

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/vip"
)

const (
	// vipsRetry is how long to wait before the cluster's virtual addresses are asked for again, at a first start and
	// after an error.
	vipsRetry = time.Second
	// vipsConflictRetry is the same when somebody has the address: people change that.
	vipsConflictRetry = 15 * time.Second
	// vipsMoved is how long a server that stops goes on serving after another one began to announce: its clients need
	// to have heard that.
	vipsMoved = 300 * time.Millisecond
)

// vips are the cluster's virtual addresses, as this server knows them. The ConfigMap clusterconfig.VIPConfigMap says
// which they are; a file has a copy, so that certificate and kubeconfigs are right from the start. The server that
// leads answers for them (vipHolder).
type vips struct {
	s *Server

	mu        sync.Mutex
	addresses []netip.Addr
	// known says that the cluster has said so, and not this server's flag alone.
	known bool
	// trouble is why the cluster's addresses are not taken over; empty when they are.
	trouble string
	// begun says that addresses were taken over, and not yet everything that follows from them.
	begun bool
	// unproven are addresses that the cluster was given while this process ran: the network is asked who has them
	// before they are announced. An address of before may be answered for by another server.
	unproven map[netip.Addr]bool
	probed   []netip.Addr  // by this server, before it told the cluster
	changed  chan struct{} // capacity 1: one says that there is something to look at

	routers func() ([]netip.Addr, error) // nil for vip.Routers
}

func newVIPs(s *Server) (*vips, error) {
	addresses, known, err := clusterconfig.ReadVIPs(s.o.ServerDir)
	if err != nil {
		return nil, err
	}
	if !known {
		addresses = s.o.VIPs
	}
	return &vips{s: s, addresses: addresses, known: known, unproven: map[netip.Addr]bool{}, changed: make(chan struct{}, 1)}, nil
}

// current are the addresses for which certificates are made.
func (v *vips) current() []netip.Addr {
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.addresses)
}

// kept are those that the cluster has.
func (v *vips) kept() []netip.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.known {
		return nil
	}
	return slices.Clone(v.addresses)
}

func (v *vips) ips() []net.IP {
	var out []net.IP
	for _, a := range v.current() {
		out = append(out, a.AsSlice())
	}
	return out
}

// run follows the cluster's addresses, and announces them while this server leads, until ctx is done.
func (v *vips) run(ctx context.Context, api *apiserver.Server, store *raftstore.Store) {
	leadership := store.Leadership()
	select {
	case <-ctx.Done():
		return
	case <-api.Ready():
	}
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { v.follow(ctx, api.LoopbackConfig()) })
	newVIPHolder(v, store).run(ctx, leadership)
}

// moveOn has another server lead, and waits until that one announces the addresses. This server's API serves meanwhile.
// It is called when the leader's loops have ended.
func (v *vips) moveOn(store *raftstore.Store) {
	if store.HandOver() && len(v.kept()) > 0 {
		time.Sleep(vipWait + vipsMoved) // the other one waits as long: there is no event of its beginning
	}
}

// clear removes the translations that a process left which was killed: until this one serves, what is for the address
// belongs to another server.
func (v *vips) clear() {
	if v.s.o.Redirect == nil {
		return
	}
	if err := v.s.o.Redirect(nil); err != nil {
		v.s.log.Warn("the translations for virtual addresses that an earlier process left could not be removed; it is tried again when the API serves", "error", err)
	}
}

// follow keeps the addresses as they are in the API until ctx is done.
func (v *vips) follow(ctx context.Context, config *rest.Config) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "vip"))
	if err != nil {
		v.fail(fmt.Errorf("making the client for the cluster's virtual addresses: %w", err))
		return
	}
	for ctx.Err() == nil {
		pause := vipsRetry
		err := v.watch(ctx, client)
		var used *vip.InUseError
		switch {
		case errors.As(err, &used):
			pause = vipsConflictRetry
			v.fail(err)
		case err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err): // of the namespace, at a first start
			v.fail(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// fail shows and logs what keeps this server from taking over the cluster's addresses.
func (v *vips) fail(err error) {
	v.mu.Lock()
	again := v.trouble == err.Error()
	v.trouble = err.Error()
	v.mu.Unlock()
	if !again {
		v.s.log.Warn("the cluster's virtual addresses are not what they should be here; it is tried again", "error", err)
		v.notify()
	}
}

func (v *vips) notify() {
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// watch reads the addresses and follows them as long as the watch lasts. Of a cluster that has said nothing yet, this
// server's flag makes them.
func (v *vips) watch(ctx context.Context, client kubernetes.Interface) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	m, err := maps.Get(ctx, clusterconfig.VIPConfigMap, metav1.GetOptions{})
	from := "0" // of none: what comes from now on
	switch {
	case apierrors.IsNotFound(err) && len(v.s.o.VIPs) > 0:
		m, err = v.publish(ctx, client)
		if apierrors.IsAlreadyExists(err) {
			return v.watch(ctx, client)
		}
		if err != nil {
			return err
		}
	case apierrors.IsNotFound(err):
		m = nil
		if err := v.set(nil, false); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if m != nil {
		from = m.ResourceVersion
		if err := v.take(ctx, client, m); err != nil {
			return err
		}
	}
	w, err := maps.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, clusterconfig.VIPConfigMap).String(), ResourceVersion: from})
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
				return nil // it is looked for again
			}
			if err := v.take(ctx, client, m); err != nil {
				return err
			}
		}
	}
}

// publish says for the cluster what this server's flag says, if nobody has the addresses.
func (v *vips) publish(ctx context.Context, client kubernetes.Interface) (*corev1.ConfigMap, error) {
	if err := CheckVIPs(ctx, v.s.o.VIPs, v.s.o.VIPInterface, v.s.o.reserved()); err != nil {
		return nil, err
	}
	if err := v.free(ctx, client, v.s.o.VIPs); err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.probed = v.s.o.VIPs
	v.mu.Unlock()
	return client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: clusterconfig.VIPConfigMap, Labels: map[string]string{roster.ManagedBy: "coracle"}},
		Data:       map[string]string{clusterconfig.VIPData: JoinAddrs(v.s.o.VIPs)},
	}, metav1.CreateOptions{})
}

// CheckVIPs says whether addresses can be announced on this machine and nobody has them. It takes about a second for
// each.
func CheckVIPs(ctx context.Context, addresses []netip.Addr, on string, reserved []netip.Prefix) error {
	links, err := vip.Links()
	if err != nil {
		return err
	}
	for _, a := range addresses {
		err := vip.Check(a, reserved)
		if err == nil {
			err = notRouters([]netip.Addr{a}, vip.Routers)
		}
		var place vip.Place
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

// take takes over what the ConfigMap says. Whoever may write there cannot have this machine answer for what is another
// one's.
func (v *vips) take(ctx context.Context, client kubernetes.Interface, m *corev1.ConfigMap) error {
	const how = "the ConfigMap %s/%s: %w; write it with: coracle vip set ADDRESS"
	addresses, err := ParseVIPs(m.Data[clusterconfig.VIPData], v.s.o.reserved())
	if err != nil {
		return fmt.Errorf(how, m.Namespace, m.Name, err)
	}
	had := v.kept()
	fresh := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(had, a) })
	if err := v.free(ctx, client, fresh); err != nil {
		return fmt.Errorf(how, m.Namespace, m.Name, err)
	}
	if err := v.set(addresses, true); err != nil {
		return err
	}
	if own := v.s.o.VIPs; len(own) > 0 && !slices.Equal(own, addresses) {
		v.fail(fmt.Errorf("--vip: this server was given %q, and the cluster that it belongs to has %q, which counts; leave it out", JoinAddrs(own), JoinAddrs(addresses)))
		return nil
	}
	v.well()
	return nil
}

// toProve says whether the network is to be asked for an address before it is announced.
func (v *vips) toProve(a netip.Addr) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.unproven[a]
}

// proven notes that nobody else has an address.
func (v *vips) proven(a netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.unproven, a)
}

// ParseVIPs reads addresses with commas in between.
func ParseVIPs(text string, reserved []netip.Prefix) ([]netip.Addr, error) {
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

// JoinAddrs writes addresses as ParseVIPs reads them.
func JoinAddrs(addresses []netip.Addr) string {
	words := make([]string, len(addresses))
	for i, a := range addresses {
		words[i] = a.String()
	}
	return strings.Join(words, ",")
}

// set takes addresses over, with certificate and kubeconfigs; what could not be done is done at the next call. known
// says that the cluster has said so.
func (v *vips) set(addresses []netip.Addr, known bool) error {
	v.mu.Lock()
	same := slices.Equal(v.addresses, addresses) && v.known == known
	done := same && !v.begun
	unproven := map[netip.Addr]bool{}
	for _, a := range addresses {
		had := v.known && slices.Contains(v.addresses, a) || slices.Contains(v.probed, a)
		if known && (v.unproven[a] || !had) {
			unproven[a] = true
		}
	}
	v.unproven = unproven
	v.addresses, v.known, v.begun = addresses, known, !done
	v.mu.Unlock()
	if done {
		return nil
	}
	defer v.notify()
	keep := func() error { return clusterconfig.WriteVIPs(v.s.o.ServerDir, addresses) }
	if !known {
		keep = func() error { return clusterconfig.ForgetVIPs(v.s.o.ServerDir) }
	} else if !same {
		v.s.log.Info("the cluster's virtual addresses", "addresses", JoinAddrs(addresses))
	}
	if err := errors.Join(keep(), v.s.useVIPs()); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begun = false
	return nil
}

// well says that there is no trouble any more.
func (v *vips) well() {
	v.mu.Lock()
	was := v.trouble != ""
	v.trouble = ""
	v.mu.Unlock()
	if was {
		v.notify()
	}
}

// redirects are the translations for addresses that have a place here.
func (v *vips) redirects(places map[netip.Addr]vip.Place) ([]vip.Redirect, error) {
	port, err := strconv.ParseUint(v.s.openPort(), 10, 16)
	if err != nil {
		return nil, fmt.Errorf("the API server's port: %w", err)
	}
	var out []vip.Redirect
	for _, a := range v.kept() {
		p, ok := places[a]
		if !ok {
			continue
		}
		to := p.Own
		if bound, ok := netip.AddrFromSlice(v.s.o.BindAddress); ok && !bound.IsUnspecified() {
			if to = bound.Unmap(); to.Is4() != a.Is4() {
				return nil, fmt.Errorf("%s is of another address family than --bind-address %s, where the API server listens", a, to)
			}
		}
		out = append(out, vip.Redirect{Address: a, Port: uint16(port), To: to})
	}
	return out, nil
}
