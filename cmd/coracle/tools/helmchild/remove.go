// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"fmt"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

func (j *job) uninstall() error {
	history, err := j.history()
	if err != nil {
		return err
	}
	last := lastOf(history)
	if last == nil {
		j.setResult(helmjob.Uninstalled, "%s is not there: nothing was done.", j.release())
		return nil
	}
	if last.Info.Status != "deployed" {
		j.result.Found = last.Info.Status.String()
	}
	note, err := j.remove(history)
	if err != nil {
		j.describe()
		return err
	}
	j.setResult(helmjob.Uninstalled, "%s was removed (it was at revision %d).%s", j.release(), last.Version, note)
	return nil
}

// remove removes the release, in whatever state it is, and waits until its objects are gone, up to the timeout. It does
// not depend on the chart: it skips hooks that fail, and objects of kinds that the cluster does not have any more. The
// note says what it had to skip.
func (j *job) remove(history []*release.Release) (note string, err error) {
	u := action.NewUninstall(j.cfg)
	u.Timeout, u.WaitStrategy = j.timeout(), kube.StatusWatcherStrategy
	_, first := u.Run(j.req.Release)
	left, err := j.history()
	if err != nil {
		return "", err
	}
	if first != nil && len(left) > 0 {
		j.log.Warn("the release could not be removed with its hooks; trying without", "release", j.req.Release, "error", first)
		u.DisableHooks = true
		if _, second := u.Run(j.req.Release); second == nil {
			note = fmt.Sprintf(" Its hooks failed and were left out: %v.", first)
			first = nil
		} else {
			first = second
		}
		if left, err = j.history(); err != nil {
			return "", err
		}
	}
	if len(left) > 0 {
		j.log.Warn("helm could not remove the release; removing its objects one by one", "release", j.req.Release, "error", first)
		if err := j.removeObjects(history); err != nil {
			return "", newFailure(helmjob.UninstallFailed, true, "%s is not removed yet: %v.", j.release(), err)
		}
		for _, r := range left {
			if _, err := j.cfg.Releases.Delete(r.Name, r.Version); err != nil {
				return "", newFailure(helmjob.ClusterUnreachable, true, "The objects of %s are removed, its record is not: %v.", lowerFirst(j.release()),
					err)
			}
		}
		return note + fmt.Sprintf(" Helm could not remove it as it does, and its objects were removed one by one: %v.", first), nil
	}
	if first != nil {
		note += fmt.Sprintf(" Not all of it was gone in the end: %v.", first)
	}
	if len(history) > 1 && len(sinceDeployed(history)) > 0 { // Helm removed only the objects of the last revision
		if err := j.removeObjects(history); err != nil {
			note += fmt.Sprintf(" Objects of revisions before it are left: %v.", err)
		}
	}
	return note, nil
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
