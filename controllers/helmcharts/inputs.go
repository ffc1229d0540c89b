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

// contentDigest begins what takes the place of chartContent in memory.
const contentDigest = "sha256:"

// digest is what stands for chartContent. It is the same for the content and for what stands for it.
func digest(content string) string {
	if content == "" || strings.HasPrefix(content, contentDigest) {
		return content
	}
	sum := sha256.Sum256([]byte(content))
	return contentDigest + hex.EncodeToString(sum[:])
}

// reference is an object that a chart reads: a Secret, or the ConfigMap of repoCAConfigMap.
type reference struct {
	configMap       bool
	namespace, name string
}

// references are those of a chart whose changes matter to it. A Secret whose updates are to be ignored is not among
// them.
func references(c *kinds.HelmChart, config *kinds.HelmChartConfig) []reference {
	found := map[reference]bool{}
	secrets := c.Spec.ValuesSecrets
	if config != nil {
		secrets = slices.Concat(secrets, config.Spec.ValuesSecrets)
	}
	for _, s := range secrets {
		if !s.IgnoreUpdates && counts(c, s) {
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

// counts says whether a Secret has values for a chart. The one that k3s itself would have made is left out, as there.
func counts(c *kinds.HelmChart, s kinds.SecretRef) bool {
	return s.Name != "" && len(s.Keys) > 0 && s.Name != "chart-values-"+c.Name
}

// reader reads what charts refer to.
type reader struct {
	client kubernetes.Interface
	files  *files // where charts lie that are named by file
	server string // this one's name
	// leastCheck is the shortest time that ReconcileEvery takes.
	leastCheck time.Duration
}

// inputs are what a chart's release is made from.
type inputs struct {
	request *helmjob.Request
	// hash and key are as in View.
	hash, key string
	// file is the sum of the chart's file. Where this server lacks that, lacks says so, and file is what it was when
	// the release was made.
	file, lacks string
}

// problemError is an error of the chart's own.
type problemError struct{ Problem }

func (p problemError) Error() string { return p.Message }

func problem(reason, format string, args ...any) error {
	return problemError{Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}}
}

// inputs reads what makes a chart's release. It is the same for a chart whose content is only stood for, but for that
// content. An error that is a [problemError] is the chart's own and stays until something changes.
func (r reader) inputs(ctx context.Context, c *kinds.HelmChart, config *kinds.HelmChartConfig) (*inputs, error) {
	q := &helmjob.Request{
		Operation: helmjob.Apply, Namespace: Target(c), Release: c.Name, CreateNamespace: c.Spec.CreateNamespace, Set: c.Spec.Set,
		FailurePolicy: helmjob.FailurePolicy(c.Spec.FailurePolicy), ServerSide: c.Spec.ServerSide, TakeOwnership: c.Spec.TakeOwnership,
		Driver: c.Spec.Driver,
	}
	if c.Spec.Timeout != nil {
		if q.Timeout = c.Spec.Timeout.Duration; q.Timeout < 0 {
			return nil, problem(string(helmjob.BadRequest), "The field timeout is negative: %s.", q.Timeout)
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
		override(q, config)
	}
	in := &inputs{request: q}
	if name := fileOf(c); name != "" {
		if in.file, err = r.files.sum(name); err != nil {
			in.file, in.lacks = c.Status.ChartDigest, r.lacking(name, err)
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
	}{in.hash, in.lacks, withoutContent(q), backOff(c), c.Annotations[Reconcile]})
	if err != nil {
		return nil, err
	}
	in.key = sum(text)
	return in, nil
}

// checkEvery is how often the objects of a chart's release are to be looked at; 0: never.
func (r reader) checkEvery(c *kinds.HelmChart) (time.Duration, error) {
	text, wanted := c.Annotations[ReconcileEvery]
	if !wanted {
		return 0, nil
	}
	every, err := time.ParseDuration(text)
	if err != nil || every < r.leastCheck {
		return 0, problem(string(helmjob.BadRequest), "The annotation %s is %q: it takes a time such as 6h or 30m, of %s at the least.",
			ReconcileEvery, text, r.leastCheck)
	}
	return every, nil
}

func withoutContent(q *helmjob.Request) *helmjob.Request {
	out := *q
	out.Chart.Content = nil
	return &out
}

func sum(text []byte) string {
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])
}

func override(q *helmjob.Request, config *kinds.HelmChartConfig) {
	if config.Spec.FailurePolicy != "" {
		q.FailurePolicy = helmjob.FailurePolicy(config.Spec.FailurePolicy)
	}
	if config.Spec.ServerSide != "" {
		q.ServerSide = config.Spec.ServerSide
	}
}

// chart says where the chart comes from.
func (r reader) chart(c *kinds.HelmChart, q *helmjob.Request) error {
	s := &c.Spec
	switch s.HelmVersion {
	case "", "v3", "v4":
	default:
		return problem("UnsupportedVersion", "The field helmVersion is %s. Charts for Helm 3 and later can be installed: leave it out.",
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
			return problem(string(helmjob.InvalidChart), "The field chartContent is no base64: %v.", err)
		}
		q.Chart.Content = content
		return nil
	}
	_, local := q.Chart.LocalFile()
	switch {
	case s.Chart == "":
		return problem(ReasonNoChart, "The HelmChart names no chart: set chart, or chartContent.")
	case !local && s.Repo == "" && !strings.Contains(s.Chart, "://"):
		// Helm itself would take it for a folder of this machine.
		return problem(ReasonNoChart, "The chart %q is neither a URL nor a file of the folder of charts: set repo, or chartContent.",
			s.Chart)
	}
	return nil
}

// hash tells what a release is made from. The version that a repository has to give is not in it, nor are credentials.
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
	return sum(text), nil
}

func setOf(c *kinds.HelmChart) map[string]any {
	out := map[string]any{}
	for k, v := range c.Spec.Set {
		out[k] = v.String()
	}
	return out
}

// values are documents in the order in which k3s has them: valuesContent, values, Secrets; what a later one says
// counts.
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
			return nil, problem(string(helmjob.InvalidValues), "The field values cannot be written as JSON: %v.", err)
		}
		out = append(out, helmjob.Document(text))
	}
	for _, ref := range secrets {
		if !counts(c, ref) {
			continue
		}
		s, err := r.client.CoreV1().Secrets(c.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && ref.IgnoreUpdates:
			continue
		case apierrors.IsNotFound(err):
			return nil, problem("SecretMissing", "There is no Secret %s/%s, which valuesSecrets names: make it.", c.Namespace, ref.Name)
		case err != nil:
			return nil, fmt.Errorf("reading the Secret %s/%s: %w", c.Namespace, ref.Name, err)
		}
		for _, key := range ref.Keys {
			text, there := s.Data[key]
			if !there && !ref.IgnoreUpdates {
				return nil, problem("SecretMissing", "The Secret %s/%s has no key %q, which valuesSecrets names.", c.Namespace, ref.Name,
					key)
			}
			if len(bytes.TrimSpace(text)) > 0 {
				out = append(out, helmjob.Document(text))
			}
		}
	}
	return out, nil
}

// access adds credentials and authorities.
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
			return problem("ConfigMapMissing", "There is no ConfigMap %s/%s, which repoCAConfigMap names: make it.", c.Namespace, ref.Name)
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
		return nil, problem("SecretMissing", "There is no Secret %s/%s, which %s names: make it.", namespace, name, field)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the Secret %s/%s: %w", namespace, name, err)
	}
	return s.Data, nil
}

// asProblem is the chart's own fault in an error; nil for any other.
func asProblem(err error) *Problem {
	if p, ok := errors.AsType[problemError](err); ok {
		return &p.Problem
	}
	return nil
}
