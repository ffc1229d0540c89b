// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// backend programs one kind of kernel load balancing. Events come from several goroutines and are only noted; prepare,
// sync and intact come from one, the front's loop, and do the work.
type backend interface {
	// name is what logs and status output call it.
	name() string

	OnServiceAdd(*corev1.Service)
	OnServiceUpdate(old, new *corev1.Service)
	OnServiceDelete(*corev1.Service)
	OnEndpointSliceAdd(*discoveryv1.EndpointSlice)
	OnEndpointSliceUpdate(old, new *discoveryv1.EndpointSlice)
	OnEndpointSliceDelete(*discoveryv1.EndpointSlice)
	// OnTopologyChange hands over this node's topology labels.
	OnTopologyChange(labels map[string]string)
	// OnServiceCIDRsChanged hands over the whole set.
	OnServiceCIDRsChanged(cidrs []string)

	// prepare runs once, before the first sync.
	prepare() error
	// sync makes the kernel what the events say: the difference, or with full everything. It returns when that is done; after
	// an error the kernel may be behind, and what it holds stays in force.
	sync(full bool) error
	// intact says whether what sync made is still there, at the cost of a question or two to the kernel.
	intact() (bool, error)
}

// candidate is a back end that New may choose.
type candidate struct {
	name string
	// open makes the back end, or says why it will not do on this host. It changes nothing in the kernel.
	open func(context.Context, Options) (backend, error)
	// remove takes out of the kernel what the back end made, in an earlier process too. Nothing there is no error.
	remove func() error
}

// candidates are tried in this order.
var candidates = []candidate{
	{nftablesName, openNFTables, removeNFTables},
}

// choose opens the first candidate that will do, and says why it is that one.
func choose(ctx context.Context, o Options, from []candidate) (_ backend, why string, _ error) {
	var errs []error
	var unfit []string
	for _, c := range from {
		b, err := c.open(ctx, o)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
			unfit = append(unfit, fmt.Sprintf("%s will not do here: %v", c.name, err))
		case len(unfit) > 0:
			return b, strings.Join(unfit, "; "), nil
		case len(from) == 1:
			return b, "it is the only one", nil
		default:
			return b, "it is the first choice, and works here", nil
		}
	}
	return nil, "", fmt.Errorf("proxy: nothing here can serve Services: %w", errors.Join(errs...))
}

// record writes down whose state is about to be in the kernel.
func record(file, backend string) error {
	if file == "" {
		return nil
	}
	if err := os.WriteFile(file, []byte(backend+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording the Service proxy's back end: %w", err)
	}
	return nil
}

// Remove takes out of the kernel what the Proxy with this record file made, and returns the name of its back end; empty
// when there is no record. The record is how it knows: another proxy on this host may use tables of the same name.
func Remove(file string) (backend string, err error) {
	return remove(file, candidates)
}

func remove(file string, from []candidate) (string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the record of the Service proxy's back end: %w", err)
	}
	name := strings.TrimSpace(string(data))
	for _, c := range from {
		if c.name != name {
			continue
		}
		if err := c.remove(); err != nil {
			return name, fmt.Errorf("removing what the Service proxy made (%s): %w", name, err)
		}
		if err := os.Remove(file); err != nil {
			return name, fmt.Errorf("removing the record of the Service proxy's back end: %w", err)
		}
		return name, nil
	}
	return name, fmt.Errorf("the Service proxy of another version left rules of the kind %q, which this one does not know: reboot to be rid of them", name)
}
