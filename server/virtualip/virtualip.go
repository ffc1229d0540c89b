// SPDX-License-Identifier: Apache-2.0

// Package virtualip keeps the cluster's virtual addresses on a server: it follows what the cluster says they are, and
// announces them while this server leads. The protocol itself is package vip's.
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

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/vip"
)

const (
	// followRetry is how long to wait before the cluster's virtual addresses are asked for again, at a first start and
	// after an error.
	followRetry = time.Second
	// conflictRetry is the same when another machine has the address: people change that.
	conflictRetry = 15 * time.Second
	// moved is how long a server that stops goes on serving after another one began to announce: its clients need
	// to have heard that.
	moved = 300 * time.Millisecond
)

// Options are what Addresses need.
type Options struct {
	// Dir is the server's folder, where a file has a copy of the addresses.
	Dir string
	// Own are the addresses that this server was given; what the cluster has counts. Interface is where they are
	// announced; empty for the interface whose network holds them.
	Own       []netip.Addr
	Interface string
	// BindAddress and Port are where the API server listens; a nil address means all.
	BindAddress net.IP
	Port        string
	// Reserved are the networks in which no address of a machine lies.
	Reserved []netip.Prefix
	// Redirect makes the machine's translations of virtual addresses these and no others (vip.SetRedirects); nil leaves
	// the machine alone.
	Redirect func([]vip.Redirect) error
	// Use brings certificate and kubeconfigs up to date with Current.
	Use func() error
	// CheckFree refuses addresses that a node or a member has.
	CheckFree func(context.Context, kubernetes.Interface, []netip.Addr) error
	// MachineAt is the name of the machine with an address of a server, empty for none.
	MachineAt func(address string) string

	Board  *status.Board // may be nil
	Logger *slog.Logger
}

// Addresses are the cluster's virtual addresses, as this server knows them. The ConfigMap clusterconfig.VIPConfigMap
// says which they are; a file has a copy, so that certificate and kubeconfigs are right from the start. The leader
// answers for them (holder).
type Addresses struct {
	o Options

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
	probed   []netip.Addr  // by this server, before it published them
	changed  timers.Signal // there is something to look at

	routers func() ([]netip.Addr, error) // nil for vip.Routers
}

// New reads the file. It starts nothing.
func New(o Options) (*Addresses, error) {
	addresses, known, err := clusterconfig.ReadVIPs(o.Dir)
	if err != nil {
		return nil, err
	}
	if !known {
		addresses = o.Own
	}
	return &Addresses{o: o, addresses: addresses, known: known, unproven: map[netip.Addr]bool{}, changed: timers.NewSignal()}, nil
}

// Current are the addresses for which certificates are made.
func (v *Addresses) Current() []netip.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.addresses)
}

// Kept are those that the cluster has.
func (v *Addresses) Kept() []netip.Addr {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.known {
		return nil
	}
	return slices.Clone(v.addresses)
}

// IPs are the same as Current.
func (v *Addresses) IPs() []net.IP {
	var out []net.IP
	for _, a := range v.Current() {
		out = append(out, a.AsSlice())
	}
	return out
}

// API is what Addresses use of the API server.
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
// serves meanwhile.
func (v *Addresses) SleepUntilMoved() {
	if len(v.Kept()) > 0 {
		time.Sleep(leaderWait + moved) // the other one waits as long: there is no event of its beginning
	}
}

// Clear removes the translations that a process left which was killed: until this one serves, what is for the address
// belongs to another server.
func (v *Addresses) Clear() {
	if v.o.Redirect == nil {
		return
	}
	if err := v.o.Redirect(nil); err != nil {
		v.o.Logger.Warn("the translations for virtual addresses that an earlier process left could not be removed; it is tried again "+
			"when the API serves", "error", err)
	}
}

// follow keeps the addresses as they are in the API until ctx is done.
func (v *Addresses) follow(ctx context.Context, config *rest.Config) {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(config), "vip"))
	if err != nil {
		v.fail(fmt.Errorf("making the client for the cluster's virtual addresses: %w", err))
		return
	}
	for ctx.Err() == nil {
		pause := followRetry
		err := v.Watch(ctx, client)
		var used *vip.InUseError
		switch {
		case errors.As(err, &used):
			pause = conflictRetry
			v.fail(err)
		case err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err): // of the namespace, at a first start
			v.fail(err)
		}
		timers.Sleep(ctx, pause)
	}
}

// fail shows and logs what keeps this server from taking over the cluster's addresses.
func (v *Addresses) fail(err error) {
	v.mu.Lock()
	again := v.trouble == err.Error()
	v.trouble = err.Error()
	v.mu.Unlock()
	if !again {
		v.o.Logger.Warn("the cluster's virtual addresses are not what they should be here; it is tried again", "error", err)
		v.changed.Send()
	}
}

// Watch reads the addresses and follows them as long as the watch lasts. Of a cluster that has said nothing yet, this
// server's flag makes them. The watch begins at the revision of a list: that of the ConfigMap itself may be in no
// history any more.
func (v *Addresses) Watch(ctx context.Context, client kubernetes.Interface) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, clusterconfig.VIPConfigMap).String()}
	found, err := maps.List(ctx, only)
	switch {
	case err != nil:
		return err
	case len(found.Items) > 0:
		err = v.apply(ctx, client, &found.Items[0])
	case len(v.o.Own) > 0:
		if err := v.publish(ctx, client); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		return v.Watch(ctx, client)
	default:
		err = v.set(nil, false)
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
				return nil // it is looked for again
			}
			if err := v.apply(ctx, client, m); err != nil {
				return err
			}
		}
	}
}

// publish says for the cluster what this server's flag says, if no machine has the addresses.
func (v *Addresses) publish(ctx context.Context, client kubernetes.Interface) error {
	if err := Check(ctx, v.o.Own, v.o.Interface, v.o.Reserved); err != nil {
		return err
	}
	if err := v.free(ctx, client, v.o.Own); err != nil {
		return err
	}
	v.mu.Lock()
	v.probed = v.o.Own
	v.mu.Unlock()
	_, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: clusterconfig.VIPConfigMap,
			Labels: map[string]string{roster.ManagedBy: "coracle"}},
		Data: map[string]string{clusterconfig.VIPData: Format(v.o.Own)},
	}, metav1.CreateOptions{})
	return err
}

// Check says whether addresses can be announced on this machine and no other machine has them. It takes about a second
// for each.
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

// apply takes over what the ConfigMap says. A user who may write there cannot have this machine answer for what is
// another one's.
func (v *Addresses) apply(ctx context.Context, client kubernetes.Interface, m *corev1.ConfigMap) error {
	const how = "the ConfigMap %s/%s: %w; write it with: coracle vip set ADDRESS"
	addresses, err := Parse(m.Data[clusterconfig.VIPData], v.o.Reserved)
	if err != nil {
		return fmt.Errorf(how, m.Namespace, m.Name, err)
	}
	had := v.Kept()
	fresh := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(had, a) })
	if err := v.free(ctx, client, fresh); err != nil {
		return fmt.Errorf(how, m.Namespace, m.Name, err)
	}
	if err := v.set(addresses, true); err != nil {
		return err
	}
	if own := v.o.Own; len(own) > 0 && !slices.Equal(own, addresses) {
		v.fail(fmt.Errorf("--vip: this server was given %q, and the cluster that it belongs to has %q, which counts; leave it out",
			Format(own), Format(addresses)))
		return nil
	}
	v.well()
	return nil
}

// toProve says whether the network is to be asked for an address before it is announced.
func (v *Addresses) toProve(a netip.Addr) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.unproven[a]
}

// proven notes that no other machine has an address.
func (v *Addresses) proven(a netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.unproven, a)
}

// Parse reads addresses with commas in between.
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

// Format writes addresses as Parse reads them.
func Format(addresses []netip.Addr) string {
	words := make([]string, len(addresses))
	for i, a := range addresses {
		words[i] = a.String()
	}
	return strings.Join(words, ",")
}

// set takes addresses over, with certificate and kubeconfigs; what could not be done is done at the next call. known
// says that the cluster has said so.
func (v *Addresses) set(addresses []netip.Addr, known bool) error {
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

// well says that there is no trouble any more.
func (v *Addresses) well() {
	v.mu.Lock()
	was := v.trouble != ""
	v.trouble = ""
	v.mu.Unlock()
	if was {
		v.changed.Send()
	}
}

// redirects are the translations for addresses that have an interface here.
func (v *Addresses) redirects(places map[netip.Addr]vip.Interface) ([]vip.Redirect, error) {
	port, err := strconv.ParseUint(v.o.Port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("the API server's port: %w", err)
	}
	var out []vip.Redirect
	for _, a := range v.Kept() {
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
