// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	accessor "helm.sh/helm/v4/pkg/chart"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// source is the origin of the chart, as far as it is known without a network request.
type source struct {
	content []byte // a chart archive
	folder  string // or the path of an unpacked chart
	sum     string // digest of either of the two; "" where the chart has to be fetched
}

// find returns the chart where the request or this machine holds it. For a chart that has to be fetched it returns an
// empty source.
func find(c *helmjob.Chart) (*source, error) {
	switch rel, local := c.LocalFile(); {
	case len(c.Content) > 0:
		return &source{content: c.Content, sum: checksum(c.Content)}, nil
	case local:
		for _, folder := range c.Folders {
			s, err := readSource(filepath.Join(folder, filepath.FromSlash(rel)))
			if !errors.Is(err, fs.ErrNotExist) {
				return s, err
			}
		}
		return nil, newFailure(helmjob.ChartNotFound, true, "There is no file %s among this server's charts (%s).", rel,
			strings.Join(c.Folders, ", "))
	}
	return &source{}, nil
}

func readSource(path string) (*source, error) {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		s, err := helmjob.SumFile(path)
		if err != nil {
			return nil, newFailure(helmjob.ChartNotFound, true, "The chart's folder cannot be read: %v.", err)
		}
		return &source{folder: path, sum: s}, nil
	}
	if err == nil && info.Size() > helmjob.MaxArchive {
		return nil, newFailure(helmjob.InvalidChart, false, "The chart %s is larger than 100 MiB.", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, &missingDependency{failure{helmjob.ChartNotFound, true, fmt.Sprintf("The chart's file cannot be read: %v.", err)}, err}
	}
	return &source{content: content, sum: checksum(content)}, nil
}

// missingDependency is a failure that also wraps its cause.
type missingDependency struct {
	failure
	cause error
}

func (m *missingDependency) Unwrap() []error { return []error{&m.failure, m.cause} }

func checksum(content []byte) string {
	s := sha256.Sum256(content)
	return hex.EncodeToString(s[:])
}

// load returns the chart, after fetching it if necessary, and checks whether it can be installed.
func (j *job) load(ctx context.Context, s *source) (*chart.Chart, error) {
	content, from := s.content, ""
	if s.sum == "" {
		var err error
		if content, from, err = newFetcher(&j.req.Chart, j.timeout(), j.log).fetch(ctx); err != nil {
			return nil, err
		}
		from = " from " + from
	}
	var ch *chart.Chart
	var err error
	if s.folder != "" {
		ch, err = loader.LoadDir(s.folder)
	} else {
		ch, err = loader.LoadArchive(bytes.NewReader(content))
	}
	if err == nil {
		err = ch.Validate()
	}
	if err != nil {
		return nil, newFailure(helmjob.InvalidChart, s.sum == "", "What was given as a chart%s is none: %v.", from, err)
	}
	return ch, j.installable(ch)
}

// installable returns an error that says why a chart cannot be installed, or nil.
func (j *job) installable(ch *chart.Chart) error {
	name := ch.Metadata.Name + " " + ch.Metadata.Version
	if t := ch.Metadata.Type; t != "" && t != "application" {
		return newFailure(helmjob.InvalidChart, false, "The chart %s is a %s for other charts, and cannot be installed by itself.", name, t)
	}
	if ch.Metadata.Deprecated {
		j.log.Warn("the chart is deprecated", "chart", name)
	}
	ac, err := accessor.NewAccessor(ch)
	if err == nil {
		err = action.CheckDependencies(ch, ac.MetaDependencies())
	}
	if err != nil {
		return newFailure(helmjob.InvalidChart, false,
			"The chart %s is not whole: %v. Build it with helm dependency build, then package it again.", name, err)
	}
	if ch.Metadata.KubeVersion == "" {
		return nil
	}
	version, err := j.cluster.discovery.ServerVersion()
	if err != nil {
		return newFailure(helmjob.ClusterUnreachable, true, "The API server does not answer: %v.", err)
	}
	if !chartutil.IsCompatibleRange(ch.Metadata.KubeVersion, version.GitVersion) {
		return newFailure(helmjob.Incompatible, false, "The chart %s wants a Kubernetes of version %s; this one is %s. Give a version of the "+
			"chart that fits.", name, ch.Metadata.KubeVersion, version.GitVersion)
	}
	return nil
}

// definedBy returns the kinds that the chart's own CRDs define.
func definedBy(ch *chart.Chart) map[schema.GroupKind]bool {
	kinds := map[schema.GroupKind]bool{}
	for _, file := range ch.CRDObjects() {
		if file.File == nil {
			continue
		}
		for _, doc := range splitDocuments(string(file.File.Data)) {
			var crd struct {
				Spec struct {
					Group string `json:"group"`
					Names struct {
						Kind string `json:"kind"`
					} `json:"names"`
				} `json:"spec"`
			}
			if err := yaml.Unmarshal([]byte(doc), &crd); err == nil {
				kinds[schema.GroupKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind}] = true
			}
		}
	}
	return kinds
}

// digestLabel is a label on the Secret of a revision that a job made. A revision that a user makes with helm inherits
// it, with a number that is not its own.
const digestLabel = helmjob.DigestLabel

// digest returns a digest that differs between different requests. It fetches and renders nothing.
func digest(req *helmjob.Request, s *source, values map[string]any) (string, error) {
	where := map[string]any{"sum": s.sum}
	if s.sum == "" {
		where = map[string]any{"name": req.Chart.Name, "repo": req.Chart.Repo, "version": req.Chart.Version}
	}
	text, err := json.Marshal([]any{where, values, req.ServerSide})
	if err != nil {
		return "", newFailure(helmjob.InvalidValues, false, "The values cannot be written as JSON: %v.", err)
	}
	return checksum(text)[:40], nil // the value of a label has at most 63 characters
}

func digestLabels(digest string, revision int) map[string]string {
	return map[string]string{digestLabel: fmt.Sprintf("%s.%d", digest, revision)}
}

// digestOf returns the digest of the request that made a revision, and "" where no job made it.
func digestOf(r *release.Release) string {
	digest, revision, _ := strings.Cut(r.Labels[digestLabel], ".")
	if revision != fmt.Sprint(r.Version) {
		return ""
	}
	return digest
}
