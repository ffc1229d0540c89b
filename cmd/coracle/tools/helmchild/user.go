// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release"
	"helm.sh/helm/v4/pkg/release/common"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// errChanged is the error of a revision that is not as the user saw it.
var errChanged = errors.New("the release has changed since you looked at it")

// shownReleases is Helm's storage of releases for a user's own operation. It refuses a record that is not the one that
// the user saw: others who may write in the release's namespace have perhaps fewer rights than the user.
type shownReleases struct {
	driver.Driver
	req *helmjob.Request
}

func (s *shownReleases) Get(key string) (release.Releaser, error) {
	r, err := s.Driver.Get(key)
	if err != nil {
		return nil, err
	}
	if rel, ok := r.(*releasev1.Release); ok && !strings.HasSuffix(key, fmt.Sprintf(".v%d", rel.Version)) {
		return nil, fmt.Errorf("%w: %s holds revision %d", errChanged, key, rel.Version)
	}
	return r, s.check(r)
}

func (s *shownReleases) List(filter func(release.Releaser) bool) ([]release.Releaser, error) {
	list, err := s.Driver.List(filter)
	return list, s.checkAll(list, err)
}

func (s *shownReleases) Query(labels map[string]string) ([]release.Releaser, error) {
	list, err := s.Driver.Query(labels)
	return list, s.checkAll(list, err)
}

func (s *shownReleases) checkAll(list []release.Releaser, err error) error {
	for _, r := range list {
		err = errors.Join(err, s.check(r))
	}
	return err
}

func (s *shownReleases) check(r release.Releaser) error {
	rel, ok := r.(*releasev1.Release)
	if !ok {
		return nil // history refuses it
	}
	if rel.Name != s.req.Release || rel.Namespace != s.req.Namespace { // Helm would take the objects of that release for this one's
		return fmt.Errorf("%w: a record of it is of release %s in namespace %s", errChanged, rel.Name, rel.Namespace)
	}
	for _, shown := range s.req.Shown {
		if rel.Version == shown.Revision && recordOf(rel).Sum() != shown.Sum {
			return fmt.Errorf("%w: revision %d is another", errChanged, rel.Version)
		}
	}
	return nil
}

// recordOf returns the contents of a revision on which Helm acts.
func recordOf(r *releasev1.Release) helmjob.Record {
	out := helmjob.Record{Manifest: r.Manifest}
	for _, h := range r.Hooks {
		if h == nil {
			continue
		}
		hook := helmjob.Hook{Name: h.Name, Kind: h.Kind, Manifest: h.Manifest, Weight: h.Weight}
		for _, e := range h.Events {
			hook.Events = append(hook.Events, e.String())
		}
		for _, p := range h.DeletePolicies {
			hook.DeletePolicies = append(hook.DeletePolicies, p.String())
		}
		out.Hooks = append(out.Hooks, hook)
	}
	return out
}

// asUser does a user's own operation.
func (j *job) asUser() error {
	history, err := j.history()
	if err != nil {
		return err
	}
	last := lastOf(history)
	if last == nil || last.Version != j.req.Shown[0].Revision {
		return newFailure(helmjob.Changed, false, "%v: it has another newest revision. Nothing was changed: look at it again.", errChanged)
	}
	if status := last.Info.Status.String(); helmjob.AtWork(status, last.Info.LastDeployed, time.Now()) {
		return newFailure(helmjob.Busy, true, "%s is %s: another helm is at work on it. Nothing was changed.", j.release(), status)
	}
	defer j.describe()
	if j.req.Operation == helmjob.Remove {
		return j.removeAsUser(last)
	}
	return j.rollBack(history)
}

// rollBack does what helm rollback does, with its defaults.
func (j *job) rollBack(history []*releasev1.Release) error {
	last, to := lastOf(history), j.req.Shown[1].Revision
	var target *releasev1.Release
	for _, r := range history {
		if r.Version == to {
			target = r
		}
	}
	if target == nil {
		return newFailure(helmjob.Changed, false, "%s has no revision %d any more. Nothing was changed.", j.release(), to)
	}
	if err := j.probe(last.Manifest, target.Manifest); err != nil {
		return err
	}
	r := action.NewRollback(j.cfg)
	r.Version, r.Timeout, r.WaitStrategy, r.MaxHistory = to, j.timeout(), kube.HookOnlyStrategy, j.cfg.Releases.MaxHistory
	if err := r.Run(j.req.Release); err != nil {
		return j.userFailure(helmjob.RollbackFailed, err)
	}
	j.setResult(helmjob.RolledBack, "%s is again as in revision %d. This is its revision %d.", j.release(), to, last.Version+1)
	return nil
}

// removeAsUser does what helm uninstall does, with its defaults.
func (j *job) removeAsUser(last *releasev1.Release) error {
	if err := j.probe(last.Manifest, ""); err != nil {
		return err
	}
	u := action.NewUninstall(j.cfg)
	u.Timeout, u.WaitStrategy = j.timeout(), kube.HookOnlyStrategy
	response, err := u.Run(j.req.Release)
	if err != nil {
		return j.userFailure(helmjob.UninstallFailed, err)
	}
	note := ""
	if response != nil && response.Info != "" {
		note = " " + strings.Join(strings.Fields(response.Info), " ")
	}
	j.setResult(helmjob.Uninstalled, "%s was removed.%s", j.release(), note)
	return nil
}

// userFailure returns a failure that says why a user's own operation failed. Helm leaves a release whose hook failed
// pending for ever, so it marks that revision as failed.
func (j *job) userFailure(reason helmjob.Reason, err error) error {
	if errors.Is(err, errChanged) {
		return newFailure(helmjob.Changed, false, "%v. Look at it again.", err)
	}
	if history, readErr := j.history(); readErr == nil {
		if last := lastOf(history); last != nil && last.Info.Status == common.StatusPendingRollback {
			last.SetStatus(common.StatusFailed, clipMessage(err.Error()))
			if err := j.cfg.Releases.Update(last); err != nil {
				j.log.Warn("the failed revision stays pending", "release", j.req.Release, "error", err)
			}
		}
	}
	return newFailure(reason, true, "%s: %v.", j.release(), err)
}

// probe asks the API whether the user may do what the change from one manifest to another needs, before anything is
// changed. It refuses to write objects that are not the release's, since Helm would take them over at a rollback.
func (j *job) probe(from, to string) error {
	current, err := j.cfg.KubeClient.Build(strings.NewReader(from), false)
	if err != nil { // Helm would fail, too, with the work half done
		return newFailure(helmjob.Failed, false, "The objects of %s cannot be read: %v. Nothing was changed.", lowerFirst(j.release()), err)
	}
	target, err := j.cfg.KubeClient.Build(strings.NewReader(to), false)
	if err != nil {
		return newFailure(helmjob.Failed, false, "The objects of the revision cannot be made: %v. Nothing was changed.", err)
	}
	for _, info := range target {
		if err := j.probeWrite(info); err != nil {
			return err
		}
	}
	for _, info := range current.Difference(target) {
		if notes, err := accessMeta.Annotations(info.Object); err == nil && notes[kube.ResourcePolicyAnno] == kube.KeepPolicy {
			continue
		}
		if to != "" { // of a removal Helm leaves what is not the release's
			if err := j.probeOwner(info); err != nil {
				return err
			}
		}
		_, err := resource.NewHelper(info.Client, info.Mapping).DryRun(true).DeleteWithOptions(info.Namespace, info.Name,
			&metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		if apierrors.IsForbidden(err) {
			return refusedTo("remove", info, err)
		}
	}
	return nil
}

// probeOwner refuses the removal of an object that is not the release's. The manifest alone does not make it so: who
// may write the record need not have a right to the object.
func (j *job) probeOwner(info *resource.Info) error {
	live, err := resource.NewHelper(info.Client, info.Mapping).Get(info.Namespace, info.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsForbidden(err):
		return refusedTo("read", info, err)
	case err != nil:
		return newFailure(helmjob.Failed, true, "Reading %s: %v. Nothing was changed.", objectName(info), err)
	}
	ours, err := j.ownsObject(live)
	if err == nil && !ours {
		err = newFailure(helmjob.Conflict, false, "%s is not of this release, and a rollback would remove it. Nothing was changed.", objectName(info))
	}
	return err
}

// probeWrite asks whether the user may write an object.
func (j *job) probeWrite(info *resource.Info) error {
	if info.Name == "" { // with generateName it is another object each time
		return nil
	}
	helper := resource.NewHelper(info.Client, info.Mapping).DryRun(true)
	live, err := helper.Get(info.Namespace, info.Name)
	switch {
	case apierrors.IsNotFound(err):
		if _, err := helper.Create(info.Namespace, false, info.Object); apierrors.IsForbidden(err) {
			return refusedTo("create", info, err)
		}
		return nil
	case apierrors.IsForbidden(err):
		return refusedTo("read", info, err)
	case err != nil:
		return newFailure(helmjob.Failed, true, "Reading %s: %v. Nothing was changed.", objectName(info), err)
	}
	ours, err := j.ownsObject(live)
	if err != nil {
		return err
	}
	if !ours {
		return newFailure(helmjob.Conflict, false, "%s is not of this release, and a rollback would overwrite it. Nothing was changed.", objectName(info))
	}
	if _, err := helper.Patch(info.Namespace, info.Name, types.MergePatchType, []byte("{}"), nil); apierrors.IsForbidden(err) {
		return refusedTo("change", info, err)
	}
	return nil
}

func refusedTo(verb string, info *resource.Info, err error) error {
	return newFailure(helmjob.Refused, false, "You may not %s %s: %v. Nothing was changed.", verb, objectName(info), err)
}
