// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	"helm.sh/helm/v4/pkg/storage/driver"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// Options are a job's settings besides its request.
type Options struct {
	Logger *slog.Logger // nil: the default one
}

// fieldManager is the name of the field manager of a chart's objects at the API server. It is helm's own name: with
// another, a user's helm would find every field in conflict.
const fieldManager = "helm"

// job carries out one request.
type job struct {
	req     *helmjob.Request
	log     *slog.Logger
	cluster *cluster
	cfg     *action.Configuration
	result  helmjob.Result
}

// Do does what the request says. It returns no error: the result says what failed.
func Do(ctx context.Context, o Options, req *helmjob.Request) (result *helmjob.Result) {
	j := &job{req: req, log: cmp.Or(o.Logger, slog.Default())}
	defer func() {
		if broken := recover(); broken != nil { // charts are untrusted input
			j.log.Error("helm broke", "panic", broken)
			result = &helmjob.Result{Reason: helmjob.Failed, Message: clipMessage(fmt.Sprintf("Helm broke on this chart: %v", broken))}
		}
	}()
	if err := j.perform(ctx); err != nil {
		f := &failure{reason: helmjob.Failed, retryable: true, message: asSentence(err.Error())}
		errors.As(err, &f)
		j.result.Reason, j.result.TryAgain, j.result.Message = f.reason, f.retryable, f.message
	}
	j.result.Message = clipMessage(j.result.Message)
	return &j.result
}

func (j *job) perform(ctx context.Context) error {
	if err := j.req.Validate(); err != nil {
		return newFailure(helmjob.BadRequest, false, "%v", err)
	}
	if err := chartutil.ValidateReleaseName(j.req.Release); err != nil {
		return newFailure(helmjob.BadRequest, false, "%q is no name for a release: %v.", j.req.Release, err)
	}
	if err := j.open(); err != nil {
		return err
	}
	switch j.req.Operation {
	case helmjob.Uninstall:
		return j.uninstall()
	case helmjob.RollBack, helmjob.Remove:
		return j.asUser()
	}
	return j.apply(ctx)
}

// open makes the clients for the API server and for Helm's storage.
func (j *job) open() error {
	kube.ManagedFieldsManager = fieldManager
	c, err := openCluster(j.req.Socket, j.req.Namespace, j.log)
	if err != nil {
		return newFailure(helmjob.BadRequest, false, "Helm's way to the API server cannot be used: %v.", err)
	}
	j.cluster = c
	j.cfg = action.NewConfiguration(action.ConfigurationSetLogger(j.log.Handler()))
	if err := j.cfg.Init(c, j.req.Namespace, cmp.Or(j.req.Driver, "secret")); err != nil {
		return newFailure(helmjob.Failed, true, "Helm cannot be prepared: %v.", err)
	}
	if j.req.Operation.OfUser() {
		j.cfg.Releases.Driver = &shownReleases{Driver: j.cfg.Releases.Driver, req: j.req}
	} else {
		j.cfg.Releases.Driver = &sealedRelease{Driver: j.cfg.Releases.Driver, j: j, owned: map[string]bool{}}
	}
	j.cfg.Releases.MaxHistory = 10 // as with helm itself
	return nil
}

func (j *job) timeout() time.Duration { return cmp.Or(j.req.Timeout, helmjob.DefaultTimeout) }

// history returns the release's revisions, oldest first. It returns none where there is no release.
func (j *job) history() ([]*release.Release, error) {
	list, err := j.cfg.Releases.History(j.req.Release)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if errors.Is(err, errChanged) {
		return nil, newFailure(helmjob.Changed, false, "%v. Nothing was changed: look at it again.", err)
	}
	if err != nil {
		return nil, newFailure(helmjob.ClusterUnreachable, true, "The release's state cannot be read: %v. It is tried again.", err)
	}
	var out []*release.Release
	for _, r := range list {
		rel, ok := r.(*release.Release)
		if !ok {
			return nil, newFailure(helmjob.Failed, false, "The release %s was made by another version of Helm, whose records (%T) this one "+
				"does not know.", j.req.Release, r)
		}
		out = append(out, rel)
	}
	releaseutil.SortByRevision(out)
	return out, nil
}

// lastOf returns the newest revision, or nil.
func lastOf(history []*release.Release) *release.Release {
	if len(history) == 0 {
		return nil
	}
	return history[len(history)-1]
}

// halfDone says whether this state was left by a process of Helm that ended during its work on a release. No such
// process works now: the caller runs one job for a release at a time.
func halfDone(s common.Status) bool { return s.IsPending() || s == common.StatusUnknown }

// describe puts the release's present revision and status into the result.
func (j *job) describe() {
	history, err := j.history()
	last := lastOf(history)
	if err != nil || last == nil {
		return
	}
	j.result.Release = &helmjob.Release{Revision: last.Version, Status: last.Info.Status.String()}
}

// setResult puts the action that was done, and the message, into the result.
func (j *job) setResult(a helmjob.Action, format string, args ...any) {
	j.result.Action, j.result.Message = a, fmt.Sprintf(format, args...)
}

// release returns the name of the release for messages.
func (j *job) release() string {
	return fmt.Sprintf("Release %s in namespace %s", j.req.Release, j.req.Namespace)
}
