// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

type desired struct {
	values map[string]any
	source *source
	digest string
}

// apply brings the release to the state that the request describes.
func (j *job) apply(ctx context.Context) error {
	w := &desired{}
	var err error
	if w.values, err = mergeValues(j.req); err != nil {
		return err
	}
	if w.source, err = find(&j.req.Chart); err != nil {
		return err
	}
	if w.digest, err = digest(j.req, w.source, w.values); err != nil {
		return err
	}
	history, err := j.history()
	if err != nil {
		return err
	}
	defer j.describe()
	if last := lastOf(history); last != nil && digestOf(last) == w.digest && !j.req.Upgrade {
		switch {
		case last.Info.Status == common.StatusDeployed:
			return j.repair(last)
		case last.Info.Status == common.StatusFailed && j.req.FailurePolicy == helmjob.Abort:
			j.result.Found = last.Info.Status.String()
			return newFailure(helmjob.Aborted, false, "%s failed with this chart and these values, and is left as it is, since its "+
				"failurePolicy is abort: %s Change the chart or its values to have it tried again.", j.release(),
				asSentence(last.Info.Description))
		}
	}
	ch, err := j.load(ctx, w.source) // the chart is loaded before anything is removed
	if err != nil {
		return err
	}
	return j.installOrUpgrade(ctx, w, ch, history)
}

// installOrUpgrade installs, upgrades or recovers the release, whatever state it was found in, so that it gets to the
// desired state.
func (j *job) installOrUpgrade(ctx context.Context, w *desired, ch *chart.Chart, history []*release.Release) error {
	last := lastOf(history)
	if last == nil || last.Info.Status == common.StatusUninstalled {
		return j.install(ctx, w, ch, history, helmjob.Installed)
	}
	found := last.Info.Status
	switch {
	case found == common.StatusDeployed, found == common.StatusSuperseded:
		return j.upgrade(ctx, w, ch, history, helmjob.Upgraded)
	case found == common.StatusUninstalling,
		found == common.StatusFailed && digestOf(last) == w.digest && cmp.Or(j.req.FailurePolicy, helmjob.Reinstall) == helmjob.Reinstall:
		j.result.Found = found.String()
		if _, err := j.remove(history); err != nil {
			return err
		}
		return j.install(ctx, w, ch, nil, helmjob.Recovered)
	case halfDone(found):
		j.log.Info("a child of Helm ended before its work was done; it is taken up again", "release", j.req.Release, "status", found)
		last.SetStatus(common.StatusFailed, "interrupted while "+found.String())
		if err := j.cfg.Releases.Update(last); err != nil {
			return newFailure(helmjob.ClusterUnreachable, true, "%s was left %s, and that cannot be changed: %v.", j.release(), found, err)
		}
	}
	j.result.Found = found.String()
	if !everDeployed(history) {
		return j.install(ctx, w, ch, history, helmjob.Recovered)
	}
	return j.upgrade(ctx, w, ch, history, helmjob.Recovered)
}

// everDeployed says whether one of the revisions was deployed completely. A release without such a revision is
// installed again, with the hooks of an installation; a release with one is upgraded.
func everDeployed(history []*release.Release) bool {
	return slices.ContainsFunc(history, func(r *release.Release) bool {
		return r.Info.Status == common.StatusDeployed || r.Info.Status == common.StatusSuperseded
	})
}

// install installs the chart where there is no release, or where failed installations have left revisions.
func (j *job) install(ctx context.Context, w *desired, ch *chart.Chart, history []*release.Release, what helmjob.Action) error {
	revision := 1
	if last := lastOf(history); last != nil {
		revision = last.Version + 1
	}
	j.cluster.ownKinds = definedBy(ch)
	i := action.NewInstall(j.cfg)
	i.ReleaseName, i.Namespace, i.CreateNamespace = j.req.Release, j.req.Namespace, j.req.CreateNamespace
	i.Replace = len(history) > 0
	i.Timeout, i.WaitStrategy = j.timeout(), kube.HookOnlyStrategy
	i.ServerSideApply = j.serverSide(nil)
	i.ForceConflicts = i.ServerSideApply
	i.TakeOwnership = j.req.TakeOwnership
	i.Labels = digestLabels(w.digest, revision)
	if _, err := i.RunWithContext(ctx, ch, w.values); err != nil {
		return j.actionFailure(helmjob.InstallFailed, err)
	}
	j.setResult(what, "%s was installed: chart %s %s, revision %d.%s", j.release(), ch.Metadata.Name, ch.Metadata.Version, revision, j.recovered())
	return j.sweep(history)
}

func (j *job) upgrade(ctx context.Context, w *desired, ch *chart.Chart, history []*release.Release, what helmjob.Action) error {
	last := lastOf(history)
	u := action.NewUpgrade(j.cfg)
	u.Namespace = j.req.Namespace
	u.ResetValues = true // the request's values are complete
	u.Timeout, u.WaitStrategy = j.timeout(), kube.HookOnlyStrategy
	u.ServerSideApply = strconv.FormatBool(j.serverSide(last))
	u.ForceConflicts = j.serverSide(last)
	u.TakeOwnership = j.req.TakeOwnership
	u.MaxHistory = j.cfg.Releases.MaxHistory
	u.Labels = digestLabels(w.digest, last.Version+1)
	if _, err := u.RunWithContext(ctx, j.req.Release, ch, w.values); err != nil {
		return j.actionFailure(helmjob.UpgradeFailed, err)
	}
	j.setResult(what, "%s was upgraded: chart %s %s, revision %d.%s", j.release(), ch.Metadata.Name, ch.Metadata.Version, last.Version+1,
		j.recovered())
	return j.sweep(sinceDeployed(history))
}

func (j *job) recovered() string {
	if j.result.Found == "" {
		return ""
	}
	return fmt.Sprintf(" It had been left %s.", j.result.Found)
}

// serverSide says whether the release uses server-side apply. By default a new release does, and an existing one keeps
// its method. With server-side apply, changes that others made to fields of the chart are overwritten, as helm did
// before it used server-side apply. So a release never ends in a conflict.
func (j *job) serverSide(last *release.Release) bool {
	switch j.req.ServerSide {
	case "true":
		return true
	case "false":
		return false
	}
	return last == nil || last.ApplyMethod == string(release.ApplyMethodServerSideApply)
}

// sinceDeployed returns the revisions after the last one that was deployed completely. Helm does not remove the objects
// of these revisions.
func sinceDeployed(history []*release.Release) []*release.Release {
	for i := len(history) - 1; i >= 0; i-- {
		if s := history[i].Info.Status; s == common.StatusDeployed || s == common.StatusSuperseded {
			return history[i+1:]
		}
	}
	return history
}
