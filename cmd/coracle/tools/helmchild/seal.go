// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"helm.sh/helm/v4/pkg/release"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/resource"
)

// sealLabel is a label on the Secret or ConfigMap of a revision that a job has written. Its value is a message
// authentication code of those contents of the record that Helm acts on. A label's value has at most 63 characters.
const sealLabel = "coracle.dev/helm-seal"

// sealedRelease is Helm's storage of releases, protected because a job has the rights of an administrator. Helm runs
// the hooks, removes the objects and repairs by the manifest that it finds in a release's record. The record is in the
// release's namespace, where users may write who have few rights in other namespaces. So sealedRelease puts a seal on
// each record that a job writes. It disarms a record without a valid seal when it is read, although such a record may
// also be a legitimate user's. A disarmed record has no hooks, and its manifest keeps only those objects that bear the
// release's marks in the cluster.
type sealedRelease struct {
	driver.Driver
	j *job

	mu    sync.Mutex
	owned map[string]bool // checked documents of manifests, and whether the release owns their objects
}

func (s *sealedRelease) Create(key string, r release.Releaser) error {
	s.seal(r)
	return s.Driver.Create(key, r)
}

func (s *sealedRelease) Update(key string, r release.Releaser) error {
	s.seal(r)
	return s.Driver.Update(key, r)
}

func (s *sealedRelease) Get(key string) (release.Releaser, error) {
	r, err := s.Driver.Get(key)
	if err != nil {
		return nil, err
	}
	return r, s.disarm(r)
}

func (s *sealedRelease) List(filter func(release.Releaser) bool) ([]release.Releaser, error) {
	list, err := s.Driver.List(filter)
	return s.openAll(list, err)
}

func (s *sealedRelease) Query(labels map[string]string) ([]release.Releaser, error) {
	list, err := s.Driver.Query(labels)
	return s.openAll(list, err)
}

func (s *sealedRelease) openAll(list []release.Releaser, err error) ([]release.Releaser, error) {
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if err := s.disarm(r); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (s *sealedRelease) seal(r release.Releaser) {
	if rel, ok := r.(*releasev1.Release); ok {
		rel.Labels = labels.Merge(rel.Labels, labels.Set{sealLabel: s.code(rel)})
	}
}

// code returns the message authentication code of the contents of a record that Helm acts on.
func (s *sealedRelease) code(r *releasev1.Release) string {
	type hook struct {
		Kind, Path, Manifest string
		Events               []releasev1.HookEvent
		Weight               int
		Policies             []releasev1.HookDeletePolicy
	}
	var hooks []hook
	for _, h := range r.Hooks {
		if h != nil {
			hooks = append(hooks, hook{h.Kind, h.Path, h.Manifest, append([]releasev1.HookEvent{}, h.Events...), h.Weight,
				append([]releasev1.HookDeletePolicy{}, h.DeletePolicies...)})
		}
	}
	text, err := json.Marshal([]any{s.j.req.Namespace, r.Name, r.Version, r.Manifest, hooks})
	if err != nil {
		panic(fmt.Sprintf("sealing a release: %v", err)) // strings and numbers can always be encoded
	}
	mac := hmac.New(sha256.New, s.j.req.Seal)
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil))[:60]
}

// disarm removes from a record what no job of coracle has put there.
func (s *sealedRelease) disarm(r release.Releaser) error {
	rel, ok := r.(*releasev1.Release)
	if !ok || hmac.Equal([]byte(rel.Labels[sealLabel]), []byte(s.code(rel))) { // Helm itself makes no record of another type
		return nil
	}
	if len(rel.Hooks) > 0 {
		s.j.log.Warn("a revision of the release was not made by a HelmChart: its hooks are left out", "release", rel.Name, "revision",
			rel.Version)
	}
	delete(rel.Labels, digestLabel)
	rel.Hooks = nil
	var kept strings.Builder
	for _, doc := range splitDocuments(rel.Manifest) {
		owned, err := s.ownsDocument(doc)
		if err != nil {
			return fmt.Errorf("looking whether what revision %d of the release says is the release's: %w", rel.Version, err)
		}
		if owned {
			kept.WriteString("---\n" + strings.TrimSuffix(doc, "\n") + "\n")
		}
	}
	rel.Manifest = kept.String()
	return nil
}

// ownsDocument says whether all objects of a document exist and bear the release's marks. A user who may not write an
// object cannot put the marks on it.
func (s *sealedRelease) ownsDocument(doc string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.owned[doc]; ok {
		return known, nil
	}
	owned := true
	objects, err := s.j.cfg.KubeClient.Build(strings.NewReader(doc), false)
	if err != nil { // the document has no object, or one of a kind that the cluster does not know
		objects, owned = nil, false
	}
	for _, info := range objects {
		live, err := resource.NewHelper(info.Client, info.Mapping).Get(info.Namespace, info.Name)
		switch {
		case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err), apierrors.IsBadRequest(err):
			owned = false
		case err != nil:
			return false, fmt.Errorf("reading %s: %w", objectName(info), err)
		default:
			ours, err := s.j.ownsObject(live)
			if err != nil {
				return false, err
			}
			owned = owned && ours
		}
	}
	s.owned[doc] = owned
	return owned, nil
}

// ownsObject says whether an object of the cluster bears the release's marks.
func (j *job) ownsObject(live runtime.Object) (bool, error) {
	labels, err := accessMeta.Labels(live)
	if err != nil {
		return false, err
	}
	notes, err := accessMeta.Annotations(live)
	if err != nil {
		return false, err
	}
	return labels[managedBy] == "Helm" && notes[releaseName] == j.req.Release && notes[releaseNamespace] == j.req.Namespace, nil
}
