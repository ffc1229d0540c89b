// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/registry"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/charts"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// shop is a repository and registry with the chart web in the versions 1.0.0, 1.1.0 and 2.0.0-rc.1.
type shop struct {
	*httptest.Server
	host, ca string
}

func newShop(t *testing.T, o charts.Options, start func(http.Handler) *httptest.Server) *shop {
	t.Helper()
	o.Dir = t.TempDir()
	files := map[string][]byte{"nonsense-1.0.0.tgz": []byte("no archive")}
	for _, version := range []string{"1.0.0", "1.1.0", "2.0.0-rc.1"} {
		files["web-"+version+".tgz"] = web(version).Archive()
	}
	for name, archive := range files {
		testenv.NoError(t, os.WriteFile(filepath.Join(o.Dir, name), archive, 0o600))
	}
	s := &shop{Server: start(charts.Handler(o))}
	t.Cleanup(s.Close)
	s.host = s.Listener.Addr().String()
	if c := s.Certificate(); c != nil {
		s.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return s
}

// push puts the chart into the registry with Helm's own client.
func (s *shop) push(t *testing.T, versions ...string) {
	t.Helper()
	f := newFetcher(&helmjob.Chart{Username: "me", Password: "secret", CA: s.ca, PlainHTTP: s.ca == ""}, helmjob.DefaultTimeout, nil)
	testenv.NoError(t, f.connect())
	defer f.client.CloseIdleConnections()
	client := testenv.Must(f.registryClient(s.host))(t)
	for _, v := range versions {
		testenv.Must(client.Push(web(v).Archive(), s.host+"/charts/web:"+v, registry.PushOptStrictMode(true)))(t)
	}
}

// TestChartIsFetchedFromEachSource fetches a chart from each place, and fails at each in each way that is a user's to
// mend.
func TestChartIsFetchedFromEachSource(t *testing.T) {
	open := newShop(t, charts.Options{}, httptest.NewServer)
	open.push(t, "1.0.0", "1.1.0")
	private := newShop(t, charts.Options{User: "me", Password: "secret"}, httptest.NewTLSServer)
	private.push(t, "1.0.0")
	folder := t.TempDir()
	testenv.NoError(t, os.WriteFile(filepath.Join(folder, "web.tgz"), web("1.0.0").Archive(), 0o600))
	unpacked := filepath.Join(folder, "unpacked", "web")
	for name, text := range web("1.0.0") {
		path := filepath.Join(unpacked, name)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		testenv.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	closed := l.Addr().String()
	_ = l.Close() // a port where no process listens, or one that serves no charts
	docker := `{"auths":{"` + private.host + `":{"username":"me","password":"secret"}}}`

	type chart = helmjob.Chart
	for name, tt := range map[string]struct {
		chart   chart
		version string         // that was fetched
		reason  helmjob.Reason // or why not
		says    string
	}{
		"repository":           {chart: chart{Name: "web", Repo: open.URL}, version: "1.1.0"},
		"a version":            {chart: chart{Name: "web", Repo: open.URL + "/", Version: "1.0.0"}, version: "1.0.0"},
		"a range":              {chart: chart{Name: "web", Repo: open.URL, Version: "<1.1"}, version: "1.0.0"},
		"a pre-release":        {chart: chart{Name: "web", Repo: open.URL, Version: "2.0.0-rc.1"}, version: "2.0.0-rc.1"},
		"an archive's URL":     {chart: chart{Name: open.URL + "/web-1.0.0.tgz"}, version: "1.0.0"},
		"a registry":           {chart: chart{Name: "oci://" + open.host + "/charts/web", PlainHTTP: true}, version: "1.1.0"},
		"a registry's version": {chart: chart{Name: "oci://" + open.host + "/charts/web", Version: "1.0.0", PlainHTTP: true}, version: "1.0.0"},
		"a registry's range":   {chart: chart{Name: "oci://" + open.host + "/charts/web", Version: "~1.0", PlainHTTP: true}, version: "1.0.0"},
		"a registry's tag":     {chart: chart{Name: "oci://" + open.host + "/charts/web:1.0.0", PlainHTTP: true}, version: "1.0.0"},
		"a registry as repo":   {chart: chart{Name: "web", Repo: "oci://" + open.host + "/charts", Version: "1.0.0", PlainHTTP: true}, version: "1.0.0"},
		"with password":        {chart: chart{Name: "web", Repo: private.URL, CA: private.ca, Username: "me", Password: "secret"}, version: "1.1.0"},
		"without verifying":    {chart: chart{Name: "web", Repo: private.URL, InsecureSkipTLSVerify: true, Username: "me", Password: "secret"}, version: "1.1.0"},
		"private registry":     {chart: chart{Name: "oci://" + private.host + "/charts/web", CA: private.ca, DockerConfig: []byte(docker)}, version: "1.0.0"},
		"its user":             {chart: chart{Name: "oci://" + private.host + "/charts/web", CA: private.ca, Username: "me", Password: "secret"}, version: "1.0.0"},
		"an unpacked chart":    {chart: chart{Name: k3sStatic + filepath.Base(unpacked), Folders: []string{filepath.Dir(unpacked)}}, version: "1.0.0"},
		"a server's chart":     {chart: chart{Name: "web.tgz", Folders: []string{t.TempDir(), folder}}, version: "1.0.0"},
		"k3s' static chart":    {chart: chart{Name: k3sStatic + "web.tgz", Folders: []string{folder}}, version: "1.0.0"},

		"no such chart":        {chart: chart{Name: "sail", Repo: open.URL}, reason: helmjob.ChartNotFound, says: `no chart "sail"`},
		"no such version":      {chart: chart{Name: "web", Repo: open.URL, Version: "7.0.0"}, reason: helmjob.ChartNotFound, says: "7.0.0"},
		"no repository":        {chart: chart{Name: "web", Repo: open.URL + "/elsewhere"}, reason: helmjob.ChartNotFound, says: "404"},
		"no server there":      {chart: chart{Name: "web", Repo: "http://" + closed}, reason: helmjob.RepositoryUnreachable, says: "cannot be fetched"},
		"no such archive":      {chart: chart{Name: open.URL + "/web-7.0.0.tgz"}, reason: helmjob.ChartNotFound, says: "404"},
		"no archive":           {chart: chart{Name: open.URL + "/nonsense-1.0.0.tgz"}, reason: helmjob.InvalidChart, says: "is none"},
		"an unknown authority": {chart: chart{Name: "web", Repo: private.URL, Username: "me", Password: "secret"}, reason: helmjob.RepositoryNotTrusted, says: "repoCA"},
		"no password":          {chart: chart{Name: "web", Repo: private.URL, CA: private.ca}, reason: helmjob.Unauthorized, says: "authSecret"},
		"a wrong password":     {chart: chart{Name: "web", Repo: private.URL, CA: private.ca, Username: "me", Password: "guess"}, reason: helmjob.Unauthorized, says: "401"},
		"no certificate":       {chart: chart{Name: "web", Repo: private.URL, CA: "none"}, reason: helmjob.BadRequest, says: "PEM"},
		"no registry's chart":  {chart: chart{Name: "oci://" + open.host + "/charts/sail", PlainHTTP: true}, reason: helmjob.ChartNotFound, says: "charts/sail"},
		"no registry's tag":    {chart: chart{Name: "oci://" + open.host + "/charts/web", Version: "7.0.0", PlainHTTP: true}, reason: helmjob.ChartNotFound, says: "7.0.0"},
		"nothing in the range": {chart: chart{Name: "oci://" + open.host + "/charts/web", Version: ">7", PlainHTTP: true}, reason: helmjob.ChartNotFound, says: ">7"},
		"a registry in clear":  {chart: chart{Name: "oci://" + open.host + "/charts/web", Version: "1.0.0"}, reason: helmjob.RepositoryUnreachable, says: "plainHTTP"},
		"a registry's CA":      {chart: chart{Name: "oci://" + private.host + "/charts/web", Version: "1.0.0"}, reason: helmjob.RepositoryNotTrusted, says: "repoCA"},
		"a registry's user":    {chart: chart{Name: "oci://" + private.host + "/charts/web", CA: private.ca}, reason: helmjob.Unauthorized, says: "dockerRegistrySecret"},
		"nonsense for docker":  {chart: chart{Name: "oci://" + open.host + "/charts/web", DockerConfig: []byte("{"), PlainHTTP: true}, reason: helmjob.BadRequest, says: "dockerconfigjson"},
		"no version at all":    {chart: chart{Name: "oci://" + open.host + "/charts/web", Version: "one", PlainHTTP: true}, reason: helmjob.BadRequest, says: `"one" is no version`},
		"no repo":              {chart: chart{Name: "web"}, reason: helmjob.BadRequest, says: "give repo"},
		"another scheme":       {chart: chart{Name: "web", Repo: "ftp://" + closed}, reason: helmjob.BadRequest, says: "https://"},
		"no such file":         {chart: chart{Name: "none.tgz", Folders: []string{folder}}, reason: helmjob.ChartNotFound, says: "none.tgz"},
		"no such static chart": {chart: chart{Name: k3sStatic + "../../etc/none.tgz", Folders: []string{folder}}, reason: helmjob.ChartNotFound, says: "no file etc/none.tgz"},
	} {
		t.Run(name, func(t *testing.T) {
			j := &job{req: &helmjob.Request{Chart: tt.chart}, log: quiet}
			s, err := find(&tt.chart)
			if err == nil {
				ch, loadErr := j.load(t.Context(), s)
				if err = loadErr; err == nil && ch.Metadata.Version != tt.version {
					t.Fatalf("it is version %s, want %q", ch.Metadata.Version, tt.version)
				}
			}
			testenv.Require(t, (err == nil) == (tt.reason == ""), "failed with %v, want %q", err, tt.reason)
			if err != nil {
				t.Log(err)
				if f := asFailure(err); f.reason != tt.reason || !strings.Contains(f.message, tt.says) {
					t.Errorf("failed with %q, want %q, and the message has to say %q", f.reason, tt.reason, tt.says)
				}
				testenv.False(t, strings.Contains(err.Error(), "guess"), "the message has the password in it")
			}
		})
	}
}

// k3sStatic is how k3s' manifests name charts that lie on the server.
const k3sStatic = "https://%{KUBERNETES_API}%/static/charts/"

// TestCredentialsGoToRepositorysHostOnly looks that a password goes to the repository's own host alone, unless it is
// configured otherwise.
func TestCredentialsGoToRepositorysHostOnly(t *testing.T) {
	other := newShop(t, charts.Options{User: "me", Password: "secret"}, httptest.NewServer)
	index := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("apiVersion: v1\nentries:\n  web:\n  - {apiVersion: v2, name: web, version: 1.0.0, urls: ['" + other.URL + "/web-1.0.0.tgz']}\n"))
	}))
	defer index.Close()
	c := &helmjob.Chart{Name: "web", Repo: index.URL, Username: "me", Password: "secret"}
	_, _, err := newFetcher(c, helmjob.DefaultTimeout, quiet).fetch(t.Context())
	testenv.True(t, asFailure(err).reason == helmjob.Unauthorized, "the password went to another host: %v", err)
	c.PassCredentialsAll = true
	if _, _, err := newFetcher(c, helmjob.DefaultTimeout, quiet).fetch(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestArchiveWithAnotherDigestIsRefused(t *testing.T) {
	archive := web("1.0.0").Archive()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/index.yaml" {
			_, _ = w.Write([]byte("apiVersion: v1\nentries:\n  web:\n  - {apiVersion: v2, name: web, version: 1.0.0, urls: [web.tgz], digest: " + checksum([]byte("another")) + "}\n"))
			return
		}
		_, _ = w.Write(archive)
	}))
	defer s.Close()
	_, _, err := newFetcher(&helmjob.Chart{Name: "web", Repo: s.URL}, helmjob.DefaultTimeout, quiet).fetch(t.Context())
	if f := asFailure(err); f.reason != helmjob.InvalidChart || !strings.Contains(f.message, "digest") {
		t.Errorf("failed with %v", err)
	}
}
