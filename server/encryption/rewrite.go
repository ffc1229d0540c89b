// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

const (
	pageSize = 500
	// shownErrors bounds a message: with a broken webhook every object fails in the same way.
	shownErrors = 5
)

// Rewrite has the API server write every object of the given resources again, with the key it writes with now. An
// object that is so already costs a read only; one that someone else writes or deletes meanwhile needs nothing. done is
// called with the running number of objects.
func Rewrite(ctx context.Context, config *rest.Config, resources []string, done func(int)) error {
	config = rest.CopyConfig(config)
	config.QPS = -1 // priority and fairness on the server's side is limit enough
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	kinds, err := find(disco, resources)
	if err != nil {
		return err
	}
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	r := rewriter{client: client, done: done}
	for _, gvr := range kinds {
		if err := r.all(ctx, gvr); err != nil {
			return fmt.Errorf("writing %s again: %w", gvr.GroupResource(), err)
		}
	}
	if r.failed > 0 {
		return fmt.Errorf("%d of %d objects could not be written again: %w", r.failed, r.count, errors.Join(r.errs...))
	}
	return nil
}

// find turns the names in a configuration into what the API server has of them. A resource whose CRD is not there has
// no objects and is left out.
func find(disco discovery.DiscoveryInterface, resources []string) ([]schema.GroupVersionResource, error) {
	lists, err := discovery.ServerPreferredResources(disco)
	var failed *discovery.ErrGroupDiscoveryFailed
	if errors.As(err, &failed) {
		for gv, why := range failed.Groups {
			if matches(resources, schema.GroupResource{Group: gv.Group, Resource: "*"}) {
				return nil, fmt.Errorf("what %s offers cannot be found out: %w", gv, why)
			}
		}
	} else if err != nil {
		return nil, fmt.Errorf("finding out what the API server offers: %w", err)
	}
	var out []schema.GroupVersionResource
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			verbs := []string(r.Verbs)
			if strings.Contains(r.Name, "/") || !slices.Contains(verbs, "list") || !slices.Contains(verbs, "patch") {
				continue
			}
			if gvr := gv.WithResource(r.Name); matches(resources, gvr.GroupResource()) {
				out = append(out, gvr)
			}
		}
	}
	return out, nil
}

// matches says whether a configuration's list covers a resource; the resource "*" asks for any of a group.
func matches(list []string, gr schema.GroupResource) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		want := schema.ParseGroupResource(s)
		return s == "*.*" || want.Group == gr.Group && (want.Resource == "*" || gr.Resource == "*" || want.Resource == gr.Resource)
	})
}

// rewriter writes objects again without seeing them: an empty patch makes the API server read, decrypt and, when the
// stored form is not the one it would write, store the object.
type rewriter struct {
	client metadata.Interface
	done   func(int)
	count  int
	failed int
	errs   []error
}

func (r *rewriter) all(ctx context.Context, gvr schema.GroupVersionResource) error {
	opts := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := r.client.Resource(gvr).List(ctx, opts)
		if apierrors.IsResourceExpired(err) && opts.Continue != "" {
			opts.Continue = "" // compacted under us; what was done is skipped cheaply the second time
			continue
		}
		if err != nil {
			return err
		}
		for i := range page.Items {
			if err := r.one(ctx, gvr, &page.Items[i]); err != nil {
				return err
			}
		}
		if opts.Continue = page.Continue; opts.Continue == "" {
			return nil
		}
	}
}

// one returns an error only when going on makes no sense.
func (r *rewriter) one(ctx context.Context, gvr schema.GroupVersionResource, o *metav1.PartialObjectMetadata) error {
	_, err := r.client.Resource(gvr).Namespace(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
	r.count++
	r.done(r.count)
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil // written, gone, or just written by someone else with the new key
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if r.failed++; len(r.errs) < shownErrors {
		r.errs = append(r.errs, fmt.Errorf("%s %s/%s: %w", gvr.GroupResource(), o.Namespace, o.Name, err))
	}
	return nil
}

// LoadedHashes are the names of the configurations that an API server says it goes by: one, or none without encryption.
func LoadedHashes(ctx context.Context, config *rest.Config) ([]string, error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	body, err := client.RESTClient().Get().AbsPath("/metrics").Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking the API server for its metrics: %w", err)
	}
	defer func() { _ = body.Close() }() // read to its end or given up
	var out []string
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "apiserver_encryption_config_controller_last_config_info{"); ok {
			if _, hash, ok := strings.Cut(rest, `,hash="`); ok {
				hash, _, _ = strings.Cut(hash, `"`)
				out = append(out, hash)
			}
		}
	}
	return out, lines.Err()
}
