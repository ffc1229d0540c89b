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
	// shownErrors limits the errors in a message: with a broken webhook every object fails in the same way.
	shownErrors = 5
)

// Rewrite makes the API server write every object of the given resources again, with its current key. An object that
// has that key already costs only a read. An object that another client writes or deletes in the meantime needs no
// rewrite. done is called with the number of objects so far.
func Rewrite(ctx context.Context, config *rest.Config, resources []string, done func(int)) error {
	config = rest.CopyConfig(config)
	config.QPS = -1 // the server's priority and fairness limits the requests
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
	r := rewriter{client: client, progress: done}
	for _, gvr := range kinds {
		if err := r.rewriteAll(ctx, gvr); err != nil {
			return fmt.Errorf("writing %s again: %w", gvr.GroupResource(), err)
		}
	}
	if r.failed > 0 {
		return fmt.Errorf("%d of %d objects could not be written again: %w", r.failed, r.count, errors.Join(r.errs...))
	}
	return nil
}

// find returns the API server's resources for the names in a configuration. A resource whose CRD does not exist has no
// objects and is left out.
func find(disco discovery.DiscoveryInterface, resources []string) ([]schema.GroupVersionResource, error) {
	lists, err := discovery.ServerPreferredResources(disco)
	var failed *discovery.ErrGroupDiscoveryFailed
	if errors.As(err, &failed) {
		for gv, why := range failed.Groups {
			if matches(resources, schema.GroupResource{Group: gv.Group, Resource: "*"}) {
				return nil, fmt.Errorf("the resources of %s cannot be listed: %w", gv, why)
			}
		}
	} else if err != nil {
		return nil, fmt.Errorf("listing the API server's resources: %w", err)
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

// matches says whether a configuration's list contains a resource. The resource "*" means any resource of its group.
func matches(list []string, gr schema.GroupResource) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		want := schema.ParseGroupResource(s)
		return s == "*.*" || want.Group == gr.Group && (want.Resource == "*" || gr.Resource == "*" || want.Resource == gr.Resource)
	})
}

// rewriter writes objects again without reading them. An empty patch makes the API server read and decrypt the object.
// If the stored form differs from the one that it would write, it stores the object.
type rewriter struct {
	client   metadata.Interface
	progress func(int)
	count    int
	failed   int
	errs     []error
}

func (r *rewriter) rewriteAll(ctx context.Context, gvr schema.GroupVersionResource) error {
	opts := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := r.client.Resource(gvr).List(ctx, opts)
		if apierrors.IsResourceExpired(err) && opts.Continue != "" {
			opts.Continue = "" // compacted during the listing; objects that are done cost only a read the second time
			continue
		}
		if err != nil {
			return err
		}
		for i := range page.Items {
			if err := r.rewriteObject(ctx, gvr, &page.Items[i]); err != nil {
				return err
			}
		}
		if opts.Continue = page.Continue; opts.Continue == "" {
			return nil
		}
	}
}

// rewriteObject writes one object again. It returns an error only when continuing is useless.
func (r *rewriter) rewriteObject(ctx context.Context, gvr schema.GroupVersionResource, o *metav1.PartialObjectMetadata) error {
	_, err := r.client.Resource(gvr).Namespace(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
	r.count++
	r.progress(r.count)
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil // written, deleted, or just written with the new key by another client
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if r.failed++; len(r.errs) < shownErrors {
		r.errs = append(r.errs, fmt.Errorf("%s %s/%s: %w", gvr.GroupResource(), o.Namespace, o.Name, err))
	}
	return nil
}

// LoadedHashes returns the names of the configurations that an API server has loaded: one, or none without encryption.
func LoadedHashes(ctx context.Context, config *rest.Config) ([]string, error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	body, err := client.RESTClient().Get().AbsPath("/metrics").Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking the API server for its metrics: %w", err)
	}
	defer func() { _ = body.Close() }() // read to its end, or abandoned
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
