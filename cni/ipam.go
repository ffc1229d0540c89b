// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// errExhausted means that a pod CIDR has no free address.
var errExhausted = errors.New("no free address")

// ipam allocates pod addresses with containernetworking's host-local allocator: one folder per pod CIDR, with one file
// per address. Addresses are allocated round robin, so that a freed one stays unused for a while.
type ipam struct {
	dir    string
	mu     sync.Mutex
	stores map[netip.Prefix]addressStore
}

// addressStore is a folder of addresses without host-local's lock file. One process uses the folder, and ipam.mu
// excludes its goroutines. Child processes would inherit the file's descriptor. One that outlives a killed process, as
// a pod's shim does, would keep the lock, and no pod would get an address any more.
type addressStore struct{ *disk.Store }

// Lock implements backend.Store.
func (addressStore) Lock() error { return nil }

// Unlock implements backend.Store.
func (addressStore) Unlock() error { return nil }

// Close implements backend.Store.
func (addressStore) Close() error { return nil }

func openIPAM(dir string) (*ipam, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the address folder: %w", err)
	}
	a := &ipam{dir: dir, stores: map[netip.Prefix]addressStore{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the address folder: %w", err)
	}
	for _, e := range entries {
		// These include folders of CIDRs that the node had before: their addresses still have to be released.
		if p, err := netip.ParsePrefix(strings.ReplaceAll(e.Name(), "_", "/")); err == nil {
			if _, err := a.store(p); err != nil {
				return nil, err
			}
		}
	}
	return a, nil
}

func (a *ipam) store(p netip.Prefix) (addressStore, error) {
	if s, ok := a.stores[p]; ok {
		return s, nil
	}
	s, err := disk.New(strings.ReplaceAll(p.String(), "/", "_"), a.dir)
	if err == nil {
		err = s.Close() // closes the lock file
	}
	if err != nil {
		return addressStore{}, fmt.Errorf("opening the addresses of %s: %w", p, err)
	}
	a.stores[p] = addressStore{s}
	return a.stores[p], nil
}

// gateway returns the node's own address in a pod CIDR: its first.
func gateway(p netip.Prefix) netip.Addr { return clusterconfig.NodeSource(p) }

// allocate allocates one address of each CIDR for k, or none at all.
func (a *ipam) allocate(k key, cidrs []netip.Prefix) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []netip.Addr
	for _, cidr := range cidrs {
		addr, err := a.allocateFrom(k, cidr)
		if err != nil {
			return nil, errors.Join(err, a.releaseLocked(k))
		}
		out = append(out, addr)
	}
	return out, nil
}

func (a *ipam) allocateFrom(k key, cidr netip.Prefix) (netip.Addr, error) {
	store, err := a.store(cidr)
	if err != nil {
		return netip.Addr{}, err
	}
	set := allocator.RangeSet{{
		Subnet:  types.IPNet{IP: cidr.Addr().AsSlice(), Mask: net.CIDRMask(cidr.Bits(), cidr.Addr().BitLen())},
		Gateway: gateway(cidr).AsSlice(), RangeEnd: clusterconfig.IngressSource(cidr).Prev().AsSlice(),
	}}
	if err := set.Canonicalize(); err != nil {
		return netip.Addr{}, fmt.Errorf("pod CIDR %s cannot be used: %w", cidr, err)
	}
	got, err := allocator.NewIPAllocator(&set, store, 0).Get(k.ContainerID, k.IfName, nil)
	if err != nil {
		// The allocator has no sentinel for this error.
		if strings.HasPrefix(err.Error(), "no IP addresses available") {
			return netip.Addr{}, fmt.Errorf("%w in pod CIDR %s", errExhausted, cidr)
		}
		return netip.Addr{}, fmt.Errorf("allocating an address of %s: %w", cidr, err)
	}
	addr, ok := netip.AddrFromSlice(got.Address.IP)
	if !ok {
		return netip.Addr{}, fmt.Errorf("the allocator returned a strange address %v", got.Address)
	}
	return addr.Unmap(), nil
}

// release frees the addresses of k, in whichever CIDR they are.
func (a *ipam) release(k key) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.releaseLocked(k)
}

func (a *ipam) releaseLocked(k key) error {
	for p, store := range a.stores {
		if err := store.ReleaseByID(k.ContainerID, k.IfName); err != nil {
			return fmt.Errorf("releasing the addresses of %s in %s: %w", k, p, err)
		}
	}
	return nil
}

// owners lists the attachments that have an address, whether they live or not.
func (a *ipam) owners() (map[key]bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[key]bool{}
	for p := range a.stores {
		dir := filepath.Join(a.dir, strings.ReplaceAll(p.String(), "/", "_"))
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("reading the addresses of %s: %w", p, err)
		}
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err != nil {
				continue // the lock, or the last allocated address
			}
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, fmt.Errorf("reading an address of %s: %w", p, err)
			}
			id, ifName, _ := strings.Cut(strings.TrimSpace(string(data)), disk.LineBreak)
			out[key{id, ifName}] = true
		}
	}
	return out, nil
}
