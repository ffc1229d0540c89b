// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// Labels and annotations by which Helm recognizes the objects of a release.
const (
	managedBy        = "app.kubernetes.io/managed-by"
	releaseName      = "meta.helm.sh/release-name"
	releaseNamespace = "meta.helm.sh/release-namespace"
)

var accessMeta = meta.NewAccessor()

// splitDocuments returns the YAML documents of a manifest in their order.
func splitDocuments(manifest string) []string {
	split := releaseutil.SplitManifests(manifest)
	keys := slices.Collect(maps.Keys(split))
	sort.Sort(releaseutil.BySplitManifestsOrder(keys))
	docs := make([]string, 0, len(keys))
	for _, k := range keys {
		docs = append(docs, split[k])
	}
	return docs
}

// repair restores the release's objects to what its manifest says, without a new revision.
func (j *job) repair(r *release.Release) error {
	objects, err := j.cfg.KubeClient.Build(strings.NewReader(r.Manifest), false)
	if err != nil {
		return j.actionFailure(helmjob.UpgradeFailed, err)
	}
	objects = objects.Filter(func(i *resource.Info) bool { return i.Name != "" }) // an object with generateName gets a new name each time
	before := map[*resource.Info]string{}
	for _, info := range objects {
		if err := j.markObject(info); err != nil {
			return newFailure(helmjob.Failed, false, "%s: %v.", objectName(info), err)
		}
		live, err := resource.NewHelper(info.Client, info.Mapping).Get(info.Namespace, info.Name)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return j.actionFailure(helmjob.UpgradeFailed, fmt.Errorf("reading %s: %w", objectName(info), err))
		default:
			if before[info], err = accessMeta.ResourceVersion(live); err != nil {
				return newFailure(helmjob.Failed, false, "%s: %v.", objectName(info), err)
			}
		}
	}
	ssa := j.serverSide(r)
	if _, err := j.cfg.KubeClient.Update(objects, objects, kube.ClientUpdateOptionServerSideApply(ssa, ssa)); err != nil {
		return j.actionFailure(helmjob.UpgradeFailed, err)
	}
	var mended []string
	for _, info := range objects {
		if info.ResourceVersion != before[info] {
			mended = append(mended, objectName(info))
		}
	}
	if len(mended) == 0 {
		j.setResult(helmjob.Unchanged, "%s is what it is to be (revision %d), and so are its objects: nothing was done.", j.release(), r.Version)
		return nil
	}
	j.result.Found = "drifted"
	j.setResult(helmjob.Recovered, "Objects of %s had been changed or removed, and are again what the chart made them: %s.", lowerFirst(j.release()),
		joinAtMostFive(mended))
	return nil
}

// markObject puts the release's marks on an object.
func (j *job) markObject(info *resource.Info) error {
	has, err := accessMeta.Labels(info.Object)
	if err != nil {
		return err
	}
	annotations, err := accessMeta.Annotations(info.Object)
	if err != nil {
		return err
	}
	if err := accessMeta.SetLabels(info.Object, labels.Merge(has, labels.Set{managedBy: "Helm"})); err != nil {
		return err
	}
	marks := labels.Set{releaseName: j.req.Release, releaseNamespace: j.req.Namespace}
	return accessMeta.SetAnnotations(info.Object, labels.Merge(annotations, marks))
}

// sweep removes the objects of revisions that were never deployed completely, except those that the present revision
// has too. Helm itself compares only with the last completely deployed revision.
func (j *job) sweep(interrupted []*release.Release) error {
	if len(interrupted) == 0 {
		return nil
	}
	history, err := j.history()
	if err != nil {
		return err
	}
	var keep kube.ResourceList
	if now := lastOf(history); now != nil {
		if keep, err = j.cfg.KubeClient.Build(strings.NewReader(now.Manifest), false); err != nil {
			return nil // the manifest has just been applied; objects that are left over are harmless
		}
	}
	if err := j.removeObjects(interrupted, keep...); err != nil {
		j.log.Warn("objects of an interrupted revision are left over", "release", j.req.Release, "error", err)
	}
	return nil
}

// removeObjects removes those objects of these revisions that the release owns, except those in keep. Kinds that the
// cluster does not know any more have no objects.
func (j *job) removeObjects(revisions []*release.Release, keep ...*resource.Info) error {
	var errs []error
	seen := map[string]bool{}
	for _, r := range slices.Backward(revisions) {
		for _, doc := range splitDocuments(r.Manifest) {
			if seen[doc] {
				continue
			}
			seen[doc] = true
			objects, err := j.cfg.KubeClient.Build(strings.NewReader(doc), false)
			if err != nil {
				if !meta.IsNoMatchError(err) && !strings.Contains(err.Error(), "no matches for kind") {
					errs = append(errs, err)
				}
				continue
			}
			for _, info := range objects {
				if kube.ResourceList(keep).Get(info) == nil {
					errs = append(errs, j.removeObject(info))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (j *job) removeObject(info *resource.Info) error {
	helper := resource.NewHelper(info.Client, info.Mapping)
	live, err := helper.Get(info.Namespace, info.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", objectName(info), err)
	}
	notes, err := accessMeta.Annotations(live)
	if err != nil {
		return err
	}
	ours, err := j.ownsObject(live)
	if err != nil {
		return err
	}
	if !ours || notes[kube.ResourcePolicyAnno] == kube.KeepPolicy {
		return nil
	}
	background := metav1.DeletePropagationBackground
	if _, err := helper.DeleteWithOptions(info.Namespace, info.Name, &metav1.DeleteOptions{PropagationPolicy: &background}); err != nil &&
		!apierrors.IsNotFound(err) {
		return fmt.Errorf("removing %s: %w", objectName(info), err)
	}
	return nil
}

func objectName(info *resource.Info) string {
	name := info.Mapping.GroupVersionKind.Kind + " " + info.Name
	if info.Namespaced() {
		name = info.Mapping.GroupVersionKind.Kind + " " + info.Namespace + "/" + info.Name
	}
	return name
}

func joinAtMostFive(names []string) string {
	if len(names) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), len(names)-5)
	}
	return strings.Join(names, ", ")
}
