// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/registry"
	"helm.sh/helm/v4/pkg/repo/v1"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// fetcher fetches a chart's archive. Helm's downloader would use files, caches and plugins. fetcher replaces it, so
// that nothing is written and each failure has a message of its own.
type fetcher struct {
	c       *helmjob.Chart
	timeout time.Duration
	log     *slog.Logger
	client  *http.Client
}

func newFetcher(c *helmjob.Chart, timeout time.Duration, log *slog.Logger) *fetcher {
	return &fetcher{c: c, timeout: timeout, log: log}
}

// fetch returns the archive, and for messages the place from which it was fetched.
func (f *fetcher) fetch(ctx context.Context) ([]byte, string, error) {
	if err := f.connect(); err != nil {
		return nil, "", err
	}
	defer f.client.CloseIdleConnections()

	name := strings.TrimSpace(f.c.Name)
	repoURL := strings.TrimSuffix(strings.TrimSpace(f.c.Repo), "/")
	switch {
	case registry.IsOCI(name):
		return f.pull(name)
	case registry.IsOCI(repoURL):
		return f.pull(repoURL + "/" + name)
	case strings.HasPrefix(name, "http://"), strings.HasPrefix(name, "https://"):
		content, err := f.get(ctx, "the chart "+redactURL(name), name, true)
		return content, redactURL(name), err
	case strings.HasPrefix(repoURL, "http://"), strings.HasPrefix(repoURL, "https://"):
		return f.fromRepository(ctx, repoURL, name)
	case repoURL == "":
		return nil, "", newFailure(helmjob.BadRequest, false, "The chart %q is named without a repository: give repo, or a chart with https:// "+
			"or oci:// in front.", name)
	}
	return nil, "", newFailure(helmjob.BadRequest, false, "%q is no URL of a repository: they begin with https://, http:// or oci://.",
		redactURL(repoURL))
}

func (f *fetcher) connect() error {
	config, err := f.tls()
	if err != nil {
		return err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, TLSHandshakeTimeout: 30 * time.Second, ForceAttemptHTTP2: true,
	}
	f.client = &http.Client{Transport: transport, Timeout: f.timeout}
	return nil
}

func (f *fetcher) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: f.c.InsecureSkipTLSVerify}
	if f.c.CA == "" {
		return config, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // on a machine without certificates the pool has only this authority
	}
	if !pool.AppendCertsFromPEM([]byte(f.c.CA)) {
		return nil, newFailure(helmjob.BadRequest, false, "What is given as the repository's authority (repoCA, repoCAConfigMap) holds no "+
			"certificate in PEM.")
	}
	config.RootCAs = pool
	return config, nil
}

// fromRepository finds the chart in a repository's index and fetches it.
func (f *fetcher) fromRepository(ctx context.Context, repoURL, name string) ([]byte, string, error) {
	what := "the repository " + redactURL(repoURL)
	base, err := url.Parse(repoURL)
	if err != nil {
		return nil, "", newFailure(helmjob.BadRequest, false, "The repository's URL cannot be read: it is no URL.")
	}
	text, err := f.get(ctx, "the index of "+what, base.JoinPath("index.yaml").String(), true)
	if err != nil {
		return nil, "", err
	}
	index := repo.NewIndexFile()
	if err := yaml.Unmarshal(text, index); err != nil || index.APIVersion == "" {
		return nil, "", newFailure(helmjob.ChartNotFound, true, "%s is none: what it answers as its index.yaml is no index of charts.", what)
	}
	entry, err := chooseVersion(index, name, f.c.Version)
	switch {
	case errors.Is(err, repo.ErrNoChartName):
		return nil, "", newFailure(helmjob.ChartNotFound, true, "%s has no chart %q.", what, name)
	case err != nil:
		return nil, "", newFailure(helmjob.ChartNotFound, true, "%s has no version of the chart %s that is %s.", what, name,
			versionConstraint(f.c.Version))
	case len(entry.URLs) == 0:
		return nil, "", newFailure(helmjob.ChartNotFound, true, "%s lists the chart %s %s without a place to fetch it from.", what, name,
			entry.Version)
	}
	place, err := repo.ResolveReferenceURL(repoURL, entry.URLs[0])
	if err != nil {
		return nil, "", newFailure(helmjob.ChartNotFound, true, "%s lists the chart %s %s at a place that is no URL.", what, name, entry.Version)
	}
	if registry.IsOCI(place) {
		return f.pull(place)
	}
	at, err := url.Parse(place)
	if err != nil {
		return nil, "", newFailure(helmjob.ChartNotFound, true, "%s lists the chart %s %s at a place that is no URL.", what, name, entry.Version)
	}
	f.log.Info("fetching the chart", "chart", name, "version", entry.Version, "from", at.Redacted())
	content, err := f.get(ctx, fmt.Sprintf("the chart %s %s (%s)", name, entry.Version, at.Redacted()), place, sameHost(base, at))
	if err != nil {
		return nil, "", err
	}
	if want := strings.TrimPrefix(entry.Digest, "sha256:"); want != "" && want != checksum(content) {
		return nil, "", newFailure(helmjob.InvalidChart, true, "The chart %s %s from %s is not what the repository's index says it is: its "+
			"digest differs.", name, entry.Version, at.Redacted())
	}
	return content, at.Redacted(), nil
}

// chooseVersion returns the version of a chart that helm would choose from an index. It ignores entries without a
// version, which some servers write.
func chooseVersion(index *repo.IndexFile, name, version string) (*repo.ChartVersion, error) {
	var whole repo.ChartVersions
	for _, v := range index.Entries[name] {
		if v != nil && v.Metadata != nil && v.Version != "" {
			whole = append(whole, v)
		}
	}
	if len(whole) == 0 {
		return nil, repo.ErrNoChartName
	}
	index.Entries = map[string]repo.ChartVersions{name: whole}
	index.SortEntries()
	return index.Get(name, strings.TrimSpace(version))
}

func versionConstraint(version string) string {
	if version == "" {
		return "released (a pre-release is taken only if version names it)"
	}
	return version
}

// get fetches the content of a URL. It sends credentials if own says that the URL is on the repository's own host, or
// if the request allows them for all hosts.
func (f *fetcher) get(ctx context.Context, what, from string, own bool) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, newFailure(helmjob.BadRequest, false, "%s cannot be fetched: its address is no URL.", what)
	}
	if f.c.Username != "" && (own || f.c.PassCredentialsAll) {
		req.SetBasicAuth(f.c.Username, f.c.Password) // net/http does not send these to another host after a redirect
	}
	resp, err := f.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL, which may have a password in it
		}
		return nil, unreachableFailure(what, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, statusFailure(what, resp.StatusCode)
	}
	content, err := io.ReadAll(io.LimitReader(resp.Body, helmjob.MaxArchive+1))
	switch {
	case err != nil:
		return nil, unreachableFailure(what, err)
	case len(content) > helmjob.MaxArchive:
		return nil, newFailure(helmjob.InvalidChart, true, "%s is larger than 100 MiB.", what)
	}
	return content, nil
}

func sameHost(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		if p := u.Port(); p != "" {
			return p
		}
		return map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func redactURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(no URL)"
	}
	return u.Redacted()
}
