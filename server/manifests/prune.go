// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// prune deletes objects that are no longer in their file, and objects of removed files. It runs after everything was
// applied: an object that moved to another file then belongs to that file. It returns false when something has to be
// tried again.
func (m *Manifests) prune(ctx context.Context, found map[string]source) bool {
	wanted := m.desiredObjects(found)
	all := true
	for _, name := range slices.Sorted(maps.Keys(m.inventories)) {
		r := m.inventories[name]
		_, exists := found[name]
		f := m.files[name]
		switch {
		case ctx.Err() != nil:
			return false
		case !exists && r.server != m.o.ServerID:
			// Another server's folder had the file, so that it does not count as removed.
		case !exists:
			all = m.pruneInventory(ctx, r, nil, wanted) && all
		case f != nil && f.objects != nil && f.settled:
			all = m.pruneInventory(ctx, r, refsOf(f.objects), wanted) && all
		}
	}
	return all
}

// desiredObjects returns all objects that are in some file, or may be. For a malformed or skipped file these are the
// objects of its inventory.
func (m *Manifests) desiredObjects(found map[string]source) map[ref]bool {
	wanted := map[ref]bool{}
	for name, r := range m.inventories {
		f, s := m.files[name], found[name]
		_, exists := found[name]
		if (exists && (s.skip || f == nil || f.objects == nil)) || (!exists && r.server != m.o.ServerID) {
			for _, o := range r.objects {
				wanted[o.key()] = true
			}
		}
	}
	for _, f := range m.files {
		for _, o := range f.objects {
			wanted[o.ref().key()] = true
		}
	}
	return wanted
}

// pruneInventory deletes the inventory's objects, except for those in keep or wanted. If the file was removed (keep is
// nil) and no object is left, it deletes the inventory, too. It returns false when something has to be tried again.
func (m *Manifests) pruneInventory(ctx context.Context, r *inventory, keep []ref, wanted map[ref]bool) bool {
	removed := keep == nil && m.files[r.file] == nil
	var errs []error
	left := slices.Clone(keep)
	var deleted []string
	for _, o := range slices.Backward(r.objects) { // in reverse: objects before their CRD and namespace
		if contains(keep, o) || wanted[o.key()] {
			continue
		}
		if o.Namespace == "" {
			// It may have been recorded before its kind was known, and then applied here. Kinds without namespaces
			// ignore it.
			o.Namespace = metav1.NamespaceDefault
			if contains(keep, o) || wanted[o.key()] {
				continue
			}
		}
		did, err := m.delete(ctx, r.file, o)
		if err != nil {
			errs = append(errs, err)
			left = append(left, o)
		} else if did {
			deleted = append(deleted, o.String())
		}
	}
	r.objects = left
	if len(deleted) > 0 {
		m.log.Info("deleted objects that a manifest no longer has", "file", r.file, "objects", deleted)
	}
	if removed && len(left) == 0 {
		errs = append(errs, m.deleteInventory(ctx, r))
	} else {
		before := r.stored
		errs = append(errs, m.save(ctx, r))
		if r.stored != before && r.status == statusApplied && !removed {
			m.event(r, corev1.EventTypeNormal, "Applied", fmt.Sprintf("Applied %d objects of %s", len(r.objects), r.file))
		}
	}
	err := errors.Join(errs...)
	if err != nil && ctx.Err() == nil {
		m.log.Warn("not all objects that a manifest no longer has could be deleted; retrying", "file", r.file, "error", err)
	}
	return err == nil
}

// delete deletes an object if it has the file's annotation, and says whether it did. It does not delete an object that
// another client has taken over or that does not exist any more.
func (m *Manifests) delete(ctx context.Context, file string, o ref) (bool, error) {
	mapping, err := m.mapper.RESTMapping(o.GroupKind(), o.Version)
	if meta.IsNoMatchError(err) {
		mapping, err = m.mapper.RESTMapping(o.GroupKind()) // that version is no longer served, but another may be
	}
	if meta.IsNoMatchError(err) {
		return false, nil // the kind does not exist any more, and neither do its objects
	}
	if err != nil {
		return false, fmt.Errorf("%s: listing the cluster's resources: %w", o, err)
	}
	api := m.client(mapping, o.Namespace)
	got, err := api.Get(ctx, o.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", o, err)
	}
	if got.GetAnnotations()[fileAnnotation] != file {
		return false, nil
	}
	uid := got.GetUID()
	err = api.Delete(ctx, o.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("%s: %w", o, err)
	}
	return true, nil
}
