// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
)

// contentDigest begins the text that replaces chartContent in memory.
const contentDigest = "sha256:"

// digest returns the text that replaces chartContent. The digest of such a text is the text itself.
func digest(content string) string {
	if content == "" || strings.HasPrefix(content, contentDigest) {
		return content
	}
	sum := sha256.Sum256([]byte(content))
	return contentDigest + hex.EncodeToString(sum[:])
}

// reference is an object that a chart refers to: a Secret, or the ConfigMap of repoCAConfigMap.
type reference struct {
	configMap       bool
	namespace, name string
}

// referencesOf returns the references of a chart whose changes cause an update of its release. It leaves out Secrets
// whose updates the chart ignores.
func referencesOf(c *kinds.HelmChart, config *kinds.HelmChartConfig) []reference {
	found := map[reference]bool{}
	secrets := c.Spec.ValuesSecrets
	if config != nil {
		secrets = slices.Concat(secrets, config.Spec.ValuesSecrets)
	}
	for _, s := range secrets {
		if !s.IgnoreUpdates && hasValues(c, s) {
			found[reference{namespace: c.Namespace, name: s.Name}] = true
		}
	}
	for _, r := range []*corev1.LocalObjectReference{c.Spec.AuthSecret, c.Spec.DockerRegistrySecret} {
		if r != nil && r.Name != "" {
			found[reference{namespace: c.Namespace, name: r.Name}] = true
		}
	}
	if r := c.Spec.RepoCAConfigMap; r != nil && r.Name != "" {
		found[reference{configMap: true, namespace: c.Namespace, name: r.Name}] = true
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b reference) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
}

// hasValues reports whether a Secret has values for a chart. As in k3s, the Secret that k3s itself would have made has
// none.
func hasValues(c *kinds.HelmChart, s kinds.SecretRef) bool {
	return s.Name != "" && len(s.Keys) > 0 && s.Name != "chart-values-"+c.Name
}

// reader reads the objects and files that charts refer to.
type reader struct {
	client kubernetes.Interface
	files  *files // charts that are named by file
	server string // name of this server
	// minCheckPeriod is the shortest permitted time in ReconcileEvery.
	minCheckPeriod time.Duration
}

// inputs has everything that a chart's release is made from.
type inputs struct {
	request *helmjob.Request
	// hash and key are the same as in View.
	hash, key string
	// file is the checksum of the chart's file. If this server lacks the file, lacks is a message about that, and file
	// is the checksum of the file from which the release was made.
	file, missing string
}

// problemError is an error that the chart causes.
type problemError struct{ Problem }

func (p problemError) Error() string { return p.Message }

func newProblem(reason, format string, args ...any) error {
	return problemError{Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}}
}

// inputs reads everything that a chart's release is made from. Where a digest replaces the chart's content, the result
// is the same, but without the content. The chart is the cause of a [problemError], which stays until something
// changes.
func (r reader) inputs(ctx context.Context, c *kinds.HelmChart, config *kinds.HelmChartConfig) (*inputs, error) {
	q := &helmjob.Request{
		Operation: helmjob.Apply, Namespace: Target(c), Release: c.Name, CreateNamespace: c.Spec.CreateNamespace, Set: c.Spec.Set,
		FailurePolicy: helmjob.FailurePolicy(c.Spec.FailurePolicy), ServerSide: c.Spec.ServerSide, TakeOwnership: c.Spec.TakeOwnership,
		Driver: c.Spec.Driver,
	}
	if c.Spec.Timeout != nil {
		if q.Timeout = c.Spec.Timeout.Duration; q.Timeout < 0 {
			return nil, newProblem(string(helmjob.BadRequest), "The field timeout is negative: %s.", q.Timeout)
		}
	}
	if err := r.chart(c, q); err != nil {
		return nil, err
	}
	if _, err := r.checkEvery(c); err != nil {
		return nil, err
	}
	var err error
	if q.Values, err = r.values(ctx, c, c.Spec.Values, c.Spec.ValuesContent, c.Spec.ValuesSecrets); err != nil {
		return nil, err
	}
	if config != nil {
		more, err := r.values(ctx, c, config.Spec.Values, config.Spec.ValuesContent, config.Spec.ValuesSecrets)
		if err != nil {
			return nil, err
		}
		q.Values = append(q.Values, more...)
		applyConfig(q, config)
	}
	in := &inputs{request: q}
	if name := fileOf(c); name != "" {
		if in.file, err = r.files.sum(name); err != nil {
			in.file, in.missing = c.Status.ChartDigest, r.lacking(name, err)
		}
	}
	if in.hash, err = hash(c, q, in.file); err != nil {
		return nil, err
	}
	if err := r.access(ctx, c, q); err != nil {
		return nil, err
	}
	text, err := json.Marshal(struct {
		Hash, Lacks string
		Request     *helmjob.Request
		BackOff     int
		Reconciled  string
	}{in.hash, in.missing, withoutContent(q), backOff(c), c.Annotations[Reconcile]})
	if err != nil {
		return nil, err
	}
	in.key = checksum(text)
	return in, nil
}

// checkEvery returns the interval of checks of a release's objects; 0 for never.
func (r reader) checkEvery(c *kinds.HelmChart) (time.Duration, error) {
	text, wanted := c.Annotations[ReconcileEvery]
	if !wanted {
		return 0, nil
	}
	every, err := time.ParseDuration(text)
	if err != nil || every < r.minCheckPeriod {
		return 0, newProblem(string(helmjob.BadRequest), "The annotation %s is %q: it takes a time such as 6h or 30m, of %s at the least.",
			ReconcileEvery, text, r.minCheckPeriod)
	}
	return every, nil
}

func withoutContent(q *helmjob.Request) *helmjob.Request {
	out := *q
	out.Chart.Content = nil
	return &out
}

func checksum(text []byte) string {
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])
}

func applyConfig(q *helmjob.Request, config *kinds.HelmChartConfig) {
	if config.Spec.FailurePolicy != "" {
		q.FailurePolicy = helmjob.FailurePolicy(config.Spec.FailurePolicy)
	}
	if config.Spec.ServerSide != "" {
		q.ServerSide = config.Spec.ServerSide
	}
}

func (r reader) chart(c *kinds.HelmChart, q *helmjob.Request) error {
	s := &c.Spec
	switch s.HelmVersion {
	case "", "v3", "v4":
	default:
		return newProblem("UnsupportedVersion", "The field helmVersion is %s. Charts for Helm 3 and later can be installed: leave it out.",
			s.HelmVersion)
	}
	q.Chart = helmjob.Chart{
		Name: s.Chart, Repo: s.Repo, Version: s.Version, Folders: r.files.folders,
		PassCredentialsAll: s.AuthPassCredentials, CA: s.RepoCA, InsecureSkipTLSVerify: s.InsecureSkipTLSVerify, PlainHTTP: s.PlainHTTP,
	}
	if s.ChartContent != "" {
		q.Chart.Name, q.Chart.Repo, q.Chart.Version = "", "", ""
		if strings.HasPrefix(s.ChartContent, contentDigest) {
			return nil
		}
		content, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s.ChartContent), ""))
		if err != nil {
			return newProblem(string(helmjob.InvalidChart), "The field chartContent is no base64: %v.", err)
		}
		q.Chart.Content = content
		return nil
	}
	_, local := q.Chart.LocalFile()
	switch {
	case s.Chart == "":
		return newProblem(ReasonNoChart, "The HelmChart names no chart: set chart, or chartContent.")
	case !local && s.Repo == "" && !strings.Contains(s.Chart, "://"):
		// Helm itself would treat it as a folder of this machine.
		return newProblem(ReasonNoChart, "The chart %q is neither a URL nor a file of the folder of charts: set repo, or chartContent.",
			s.Chart)
	}
	return nil
}

// hash returns a hash of the inputs of a release. It does not include the version that a repository selects, nor
// credentials.
func hash(c *kinds.HelmChart, q *helmjob.Request, file string) (string, error) {
	text, err := json.Marshal(struct {
		Chart, Repo, Version, Content, File string
		Namespace, Driver, ServerSide       string
		Set                                 map[string]any
		Values                              []helmjob.Document
		TakeOwnership                       bool
	}{
		Chart: q.Chart.Name, Repo: q.Chart.Repo, Version: q.Chart.Version, Content: digest(c.Spec.ChartContent), File: file,
		Namespace: q.Namespace, Driver: q.Driver, ServerSide: q.ServerSide, Set: setOf(c), Values: q.Values,
		TakeOwnership: q.TakeOwnership,
	})
	if err != nil {
		return "", err
	}
	return checksum(text), nil
}

func setOf(c *kinds.HelmChart) map[string]any {
	out := map[string]any{}
	for k, v := range c.Spec.Set {
		out[k] = v.String()
	}
	return out
}

// values returns the documents in the order that k3s uses: valuesContent, values, Secrets. A later document overrides
// earlier ones.
func (r reader) values(ctx context.Context, c *kinds.HelmChart, values any, content string,
	secrets []kinds.SecretRef) ([]helmjob.Document, error) {
	var out []helmjob.Document
	if content != "" {
		out = append(out, helmjob.Document(content))
	}
	switch v := values.(type) {
	case nil:
	case string:
		out = append(out, helmjob.Document(v))
	default:
		text, err := json.Marshal(v)
		if err != nil {
			return nil, newProblem(string(helmjob.InvalidValues), "The field values cannot be written as JSON: %v.", err)
		}
		out = append(out, helmjob.Document(text))
	}
	for _, ref := range secrets {
		if !hasValues(c, ref) {
			continue
		}
		s, err := r.client.CoreV1().Secrets(c.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && ref.IgnoreUpdates:
			continue
		case apierrors.IsNotFound(err):
			return nil, newProblem("SecretMissing", "There is no Secret %s/%s, which valuesSecrets names: make it.", c.Namespace, ref.Name)
		case err != nil:
			return nil, fmt.Errorf("reading the Secret %s/%s: %w", c.Namespace, ref.Name, err)
		}
		for _, key := range ref.Keys {
			text, there := s.Data[key]
			if !there && !ref.IgnoreUpdates {
				return nil, newProblem("SecretMissing", "The Secret %s/%s has no key %q, which valuesSecrets names.", c.Namespace, ref.Name,
					key)
			}
			if len(bytes.TrimSpace(text)) > 0 {
				out = append(out, helmjob.Document(text))
			}
		}
	}
	return out, nil
}

// access adds credentials and certificate authorities.
func (r reader) access(ctx context.Context, c *kinds.HelmChart, q *helmjob.Request) error {
	if ref := c.Spec.AuthSecret; ref != nil && ref.Name != "" {
		data, err := r.secret(ctx, c.Namespace, ref.Name, "authSecret")
		if err != nil {
			return err
		}
		q.Chart.Username, q.Chart.Password = string(data[corev1.BasicAuthUsernameKey]), string(data[corev1.BasicAuthPasswordKey])
	}
	if ref := c.Spec.DockerRegistrySecret; ref != nil && ref.Name != "" {
		data, err := r.secret(ctx, c.Namespace, ref.Name, "dockerRegistrySecret")
		if err != nil {
			return err
		}
		q.Chart.DockerConfig = data[corev1.DockerConfigJsonKey]
	}
	if ref := c.Spec.RepoCAConfigMap; ref != nil && ref.Name != "" {
		m, err := r.client.CoreV1().ConfigMaps(c.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return newProblem("ConfigMapMissing", "There is no ConfigMap %s/%s, which repoCAConfigMap names: make it.", c.Namespace, ref.Name)
		}
		if err != nil {
			return fmt.Errorf("reading the ConfigMap %s/%s: %w", c.Namespace, ref.Name, err)
		}
		for _, k := range slices.Sorted(maps.Keys(m.Data)) {
			q.Chart.CA += "\n" + m.Data[k]
		}
	}
	return nil
}

func (r reader) secret(ctx context.Context, namespace, name, field string) (map[string][]byte, error) {
	s, err := r.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, newProblem("SecretMissing", "There is no Secret %s/%s, which %s names: make it.", namespace, name, field)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the Secret %s/%s: %w", namespace, name, err)
	}
	return s.Data, nil
}

// asProblem returns the problem in an error that the chart causes. It returns nil for other errors.
func asProblem(err error) *Problem {
	if p, ok := errors.AsType[problemError](err); ok {
		return &p.Problem
	}
	return nil
}
