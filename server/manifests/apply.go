// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// crdTimeout limits the wait until a file's new kinds are served. After that the file is tried again later.
const crdTimeout = 10 * time.Second

// applyFile applies a file's objects. An object that fails does not keep the others from being applied, as with
// kubectl.
func (m *Manifests) applyFile(ctx context.Context, name string, f *file) {
	r := m.inventoryOf(name)
	want, err := m.setNamespaces(ctx, f.objects)
	before := r.objects
	if err == nil {
		// The inventory is written before the objects, so that no object is ever without one. Replaced objects stay in
		// it until they are deleted.
		r.objects = union(before, want)
		err = m.save(ctx, r)
	}
	if err == nil {
		err = m.applyAll(ctx, name, f.objects)
	}
	if err != nil {
		f.scheduleRetry()
		m.report(ctx, name, f, "ApplyFailed", err)
		return
	}
	f.settled, f.wait, f.reported = true, 0, ""
	// Kinds of CRDs in the file are known now, and so are the namespaces of their objects.
	r.objects = union(before, refsOf(f.objects))
	r.status, r.hash = statusApplied, f.hash
	m.log.Info("applied a manifest", "file", name, "objects", len(f.objects))
}

// setNamespaces sets the namespace of objects that need one and have none. The CRD of an unknown kind may be in the
// folder. Objects of such a kind are recorded as written.
func (m *Manifests) setNamespaces(ctx context.Context, objects []object) ([]ref, error) {
	limited, cancel := context.WithTimeout(ctx, crdTimeout) // for all objects: other files wait in the meantime
	defer cancel()
	for _, o := range objects {
		mapping, err := m.mapping(o.Unstructured)
		switch {
		case meta.IsNoMatchError(err):
			if m.o.Want != nil && m.o.Want(o.GroupVersionKind().GroupKind()) {
				m.awaitKind(limited, o)
			}
		case err != nil:
			return nil, err
		default:
			setNamespace(o.Unstructured, mapping)
		}
	}
	return refsOf(objects), nil
}

// awaitKind waits until the object's kind is served, if the API server does not know it yet. It stops waiting when the
// kind is served only in other versions.
func (m *Manifests) awaitKind(ctx context.Context, o object) {
	for {
		mapping, err := m.mapping(o.Unstructured)
		if err == nil {
			setNamespace(o.Unstructured, mapping)
			return
		}
		_, other := m.mapper.RESTMapping(o.GroupVersionKind().GroupKind())
		if other == nil || !timers.Sleep(ctx, 100*time.Millisecond) {
			return // applying returns the error, and is tried again
		}
		m.mapper.Reset()
	}
}

func setNamespace(u *unstructured.Unstructured, mapping *meta.RESTMapping) {
	switch {
	case mapping.Scope.Name() == meta.RESTScopeNameRoot:
		u.SetNamespace("")
	case u.GetNamespace() == "":
		u.SetNamespace(metav1.NamespaceDefault)
	}
}

func (m *Manifests) mapping(u *unstructured.Unstructured) (*meta.RESTMapping, error) {
	gvk := u.GroupVersionKind()
	return m.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
}

func (m *Manifests) applyAll(ctx context.Context, name string, objects []object) error {
	var errs []error
	fail := func(o object, err error) {
		errs = append(errs, fmt.Errorf("%s:%d: %s: %w", name, o.line, o.ref(), err))
	}
	var crds []object
	for _, o := range objects {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if applyRank(o) == rankOther && crds != nil {
			for _, crd := range crds {
				if err := m.awaitEstablished(ctx, crd); err != nil {
					fail(crd, err)
				}
			}
			m.mapper.Reset()
			crds = nil
		}
		if err := m.apply(ctx, name, o.Unstructured); err != nil {
			fail(o, err)
		} else if applyRank(o) == rankCRD {
			crds = append(crds, o)
		}
	}
	if crds != nil {
		m.mapper.Reset() // for the files after this one
	}
	return errors.Join(errs...)
}

func (m *Manifests) apply(ctx context.Context, name string, u *unstructured.Unstructured) error {
	mapping, err := m.mapping(u)
	if meta.IsNoMatchError(err) {
		return fmt.Errorf("the cluster has no kind %s in %s (yet?): %w", u.GetKind(), u.GetAPIVersion(), err)
	}
	if err != nil {
		return fmt.Errorf("listing the cluster's resources: %w", err)
	}
	setNamespace(u, mapping)
	u = u.DeepCopy()
	u.SetAnnotations(labels.Merge(u.GetAnnotations(), labels.Set{fileAnnotation: name}))
	data, err := json.Marshal(u)
	if err != nil {
		return err
	}
	_, err = m.client(mapping, u.GetNamespace()).Patch(ctx, u.GetName(), types.ApplyPatchType, data, metav1.PatchOptions{
		FieldManager: fieldManager, Force: ptr.To(true), FieldValidation: metav1.FieldValidationStrict})
	return err
}

func (m *Manifests) client(mapping *meta.RESTMapping, namespace string) dynamic.ResourceInterface {
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return m.dynamic.Resource(mapping.Resource)
	}
	return m.dynamic.Resource(mapping.Resource).Namespace(namespace)
}

// awaitEstablished waits until the API server serves a CRD's kind.
func (m *Manifests) awaitEstablished(ctx context.Context, crd object) error {
	mapping, err := m.mapping(crd.Unstructured)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, crdTimeout)
	defer cancel()
	for {
		got, err := m.client(mapping, "").Get(ctx, crd.GetName(), metav1.GetOptions{})
		if err == nil && isEstablished(got) {
			return nil
		}
		if !timers.Sleep(ctx, 100*time.Millisecond) {
			return errors.Join(errors.New("the API server does not serve its kind yet"), err)
		}
	}
}

func isEstablished(crd *unstructured.Unstructured) bool {
	conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(conditions, func(c any) bool {
		m, _ := c.(map[string]any)
		return m["type"] == "Established" && m["status"] == string(corev1.ConditionTrue)
	})
}
