// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// packed is a text as Helm keeps it.
func packed(t *testing.T, text io.Reader) string {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	testenv.Must(io.Copy(z, text))(t)
	testenv.NoError(t, z.Close())
	return base64.StdEncoding.EncodeToString(out.Bytes())
}

// blanks never end.
type blanks struct{}

func (blanks) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// helmAPI has the release web with two revisions, and one, odd, that is no release.
func helmAPI(t *testing.T) http.HandlerFunc {
	t.Helper()
	revision := func(n int, status string) string {
		return packed(t, strings.NewReader(fmt.Sprintf(`{"name":"web","namespace":"a","version":%d,"info":{"last_deployed":"2026-01-0%dT00:00:00Z","description":"done","status":%q,"notes":"hello"},`+
			`"chart":{"metadata":{"name":"webchart","version":"1.%d.0","appVersion":"9"},"templates":[{"name":"x","data":"eA=="}]},"config":{"password":"hunter2"},"manifest":"kind: Secret"}`, n, n, status, n)))
	}
	contents := map[string]string{
		"sh.helm.release.v1.web.v1": revision(1, "superseded"), "sh.helm.release.v1.web.v2": revision(2, "deployed"), "sh.helm.release.v1.odd.v1": "%",
		"sh.helm.release.v1.bomb.v1": packed(t, io.LimitReader(blanks{}, 2*maxRelease)),
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/configmaps") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/secrets") {
			testenv.True(t, r.Header.Get("Accept") == asMetadata && r.URL.Query().Get("fieldSelector") == "type=helm.sh/release.v1",
				"%s %s", r.URL, r.Header)
			item := func(name string, version string) string {
				return fmt.Sprintf(`{"metadata":{"name":"sh.helm.release.v1.%s.v%s","namespace":"a","labels":{"owner":"helm","name":%q,"version":%q,"status":"x"}}}`, name, version, name, version)
			}
			items := []string{item("web", "2"), item("web", "1")}
			if r.URL.Query().Get("labelSelector") == "owner=helm" {
				items = append(items, item("odd", "1"), item("bomb", "1"), `{"metadata":{"name":"other","labels":{"owner":"helm"}}}`)
			}
			_, _ = io.WriteString(w, `{"kind":"PartialObjectMetadataList","items":[`+strings.Join(items, ",")+`]}`)
			return
		}
		content, found := contents[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]
		if !found {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, `{"data":{"release":"`+base64.StdEncoding.EncodeToString([]byte(content))+`"}}`)
	}
}

// An attacker who writes Secrets makes a release that unpacks to gigabytes, and one that is none; the console must not
// read them whole, and the list must not have values.
func TestReleasesAreListedWithinBounds(t *testing.T) {
	s := consoleOf(t, helmAPI(t))
	code, text, _ := roundTrip(t, s, "GET", "/helm?namespace=a", "", asUser...)
	var got releasesResponse
	if err := json.Unmarshal([]byte(text), &got); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s: %v", code, text, err)
	}
	testenv.Require(t, len(got.Releases) == 3 && len(got.Partial) == 1, "%s", text)
	bomb, odd, web := got.Releases[0], got.Releases[1], got.Releases[2]
	testenv.False(t, bomb.Problem != "the release is longer than 16 MB" || !strings.Contains(odd.Problem, "base64"), "%+v, %+v", bomb, odd)
	if web.Revision != 2 || web.Chart != "webchart" || web.Version != "1.2.0" || web.AppVersion != "9" || web.Updated != "2026-01-02T00:00:00Z" || web.Status != "x" {
		t.Errorf("%+v", web)
	}
	testenv.False(t, strings.Contains(text, "hunter2"), "the list has values: %s", text)
}

// An attacker who is a user asks for a release by a name that is a selector or a path; the API must not be asked that,
// and values must not be sent unless they are asked for.
func TestReleaseIsReadByNameAndRevision(t *testing.T) {
	s := consoleOf(t, helmAPI(t))
	for query, want := range map[string]struct {
		code, revision int
		content        bool
	}{
		"namespace=a&name=web":                         {200, 2, false},
		"namespace=a&name=web&revision=1":              {200, 1, false},
		"namespace=a&name=web&revision=1&content=true": {200, 1, true},
		"namespace=a&name=web&revision=3":              {code: 404},
		"namespace=a&name=a%2Cowner!%3Dhelm":           {code: 400},
		"namespace=..&name=web":                        {code: 400},
		"namespace=a":                                  {code: 400},
		"namespace=a&name=web&driver=pods":             {code: 400},
		"namespace=a&name=web&driver=configmaps":       {code: 403},
	} {
		code, text, _ := roundTrip(t, s, "GET", "/helm/release?"+query, "", asUser...)
		var got releaseResponse
		if err := json.Unmarshal([]byte(text), &got); err != nil || code != want.code || got.Revision != want.revision {
			t.Errorf("%s: %d %s: %v", query, code, text, err)
			continue
		}
		testenv.False(t, code == 200 && (len(got.History) != 2 || got.History[0].Chart != "webchart"), "%s: %s", query, text)
		shown := got.Values == "password: hunter2\n" && got.Notes == "hello" && got.Manifest == "kind: Secret"
		testenv.False(t, shown != want.content || strings.Contains(text, "hunter2") != want.content, "%s: %s", query, text)
	}
	if code, _, _ := roundTrip(t, s, "GET", "/helm/release?namespace=a&name=web", ""); code != http.StatusUnauthorized {
		t.Errorf("without a token: %d", code)
	}
}

// TestReleasesThatMayNotBeRead: who may read neither Secrets nor ConfigMaps gets the API's own refusal.
func TestReleasesThatMayNotBeRead(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"kind":"Status","code":403,"reason":"Forbidden","message":"secrets is forbidden"}`)
	})
	if code, text, _ := roundTrip(t, s, "GET", "/helm", "", asUser...); code != http.StatusForbidden || !strings.Contains(text, "secrets is forbidden") {
		t.Errorf("%d %s", code, text)
	}
}
