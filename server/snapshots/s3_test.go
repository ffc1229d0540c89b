// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"crypto/md5"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fakeS3 is the part of S3's protocol that snapshots need, with one bucket. It does not check signatures.
type fakeS3 struct {
	*httptest.Server
	mu      sync.Mutex
	objects map[string][]byte
	parts   map[int][]byte
	seen    []string // METHOD PATH of each request
	largest int      // body of a request
	deny    bool
	whole   bool                  // it does not heed ranges
	after   func(r *http.Request) // what happens to the objects after an answer was made
}

// pageSize is how many objects S3 lists at once.
const pageSize = 1000

func newFakeS3(t *testing.T) *fakeS3 {
	t.Helper()
	f := &fakeS3{objects: map[string][]byte{}, parts: map[int][]byte{}}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = log.New(io.Discard, "", 0) // it tells of clients that do not believe its certificate
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

func (f *fakeS3) settings() map[string]string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
	return map[string]string{
		config.S3Endpoint: strings.TrimPrefix(f.URL, "https://"), config.S3Bucket: "boats", config.S3Folder: "/a/b/", config.S3Lookup: "path",
		config.S3AccessKey: "access", config.S3SecretKey: "secret", config.S3EndpointCA: string(ca), config.S3Retention: "2",
	}
}

func mustS3(t *testing.T, values map[string]string) *config.S3 {
	t.Helper()
	return testenv.Must(config.ParseS3(values))(t)
}

func (f *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, r.Method+" "+r.URL.Path)
	f.largest = max(f.largest, len(body))
	if f.after != nil {
		defer f.after(r)
	}
	if f.whole {
		r.Header.Del("Range")
	}
	fail := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `<Error><Code>%s</Code><Message>made up</Message></Error>`, code)
	}
	key, ok := strings.CutPrefix(r.URL.Path, "/boats/")
	q := r.URL.Query()
	switch {
	case f.deny:
		fail(403, "AccessDenied")
	case !ok:
		fail(404, "NoSuchBucket")
	case !strings.Contains(r.Header.Get("Authorization"), "Credential=access/"):
		fail(403, "InvalidAccessKeyId")
	case len(body) > 0 && (r.Method == http.MethodPut) && r.Header.Get("Content-Md5") != sum(body):
		fail(400, "BadDigest")
	case key == "":
		f.list(w, q.Get("prefix"), q.Get("continuation-token"))
	case r.Method == http.MethodPost && q.Has("uploads"):
		fmt.Fprint(w, `<InitiateMultipartUploadResult><Bucket>boats</Bucket><UploadId>u</UploadId></InitiateMultipartUploadResult>`)
	case r.Method == http.MethodPut && q.Has("partNumber"):
		n, _ := strconv.Atoi(q.Get("partNumber"))
		f.parts[n] = body
		w.Header().Set("ETag", etag(body))
	case r.Method == http.MethodPost:
		var whole []byte
		for _, n := range slices.Sorted(maps.Keys(f.parts)) {
			whole = append(whole, f.parts[n]...)
		}
		f.objects[key], f.parts = whole, map[int][]byte{}
		fmt.Fprint(w, `<CompleteMultipartUploadResult><Bucket>boats</Bucket><Key>k</Key><ETag>"e"</ETag></CompleteMultipartUploadResult>`)
	case r.Method == http.MethodPut:
		f.objects[key] = body
		w.Header().Set("ETag", etag(body))
	case f.objects[key] == nil:
		fail(404, "NoSuchKey")
	case r.Method == http.MethodDelete:
		delete(f.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case len(f.objects[key]) == 0 && r.Header.Get("Range") != "":
		fail(416, "InvalidRange")
	default:
		w.Header().Set("ETag", etag(f.objects[key]))
		http.ServeContent(w, r, "", start, strings.NewReader(string(f.objects[key])))
	}
}

func (f *fakeS3) list(w http.ResponseWriter, prefix, from string) {
	type entry struct {
		Key  string
		Size int
	}
	var out struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string
		Contents              []entry
	}
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok || strings.Contains(rest, "/") || key < from {
			continue
		}
		if len(out.Contents) == pageSize {
			out.IsTruncated, out.NextContinuationToken = true, key
			break
		}
		out.Contents = append(out.Contents, entry{key, len(f.objects[key])})
	}
	_ = xml.NewEncoder(w).Encode(out)
}

func sum(b []byte) string {
	s := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(s[:])
}

func etag(b []byte) string {
	s := md5.Sum(b)
	return `"` + hex.EncodeToString(s[:]) + `"`
}

// asked is how many requests there were with this method.
func (f *fakeS3) asked(method string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.seen {
		if strings.HasPrefix(r, method+" ") {
			n++
		}
	}
	return n
}

func (f *fakeS3) keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.objects))
}

// TestSnapshotInS3IsListedFetchedAndPruned: a snapshot is on both sides, listed from both, fetched to another machine
// and restored there.
func TestSnapshotInS3IsListedFetchedAndPruned(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	m.Put("a", "1")
	settings := mustS3(t, f.settings())
	m.o.S3 = func(context.Context) (*config.S3, error) { return settings, nil }
	info := m.MustSave()
	f.objects["a/b/notes.txt"] = []byte("another program's")
	f.objects["a/other"] = []byte("in another folder")
	list, err := m.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Header != list[1].Header || list[1].Location != "s3://boats/a/b/"+info.Name || list[1].Size != info.Size {
		t.Fatalf("%+v, %v", list, err)
	}
	dir := t.TempDir()
	path := testenv.Must(Fetch(t.Context(), settings, info.Name, dir))(t)
	testenv.Check(t, testenv.Err(Restore(target(t), path, m.Key)))
	testenv.WantError(t, testenv.Err(Fetch(t.Context(), settings, "nothing", dir)), "fetching nothing")
	testenv.Equal(t, len(names(t, dir)), 1, "left over:")
	second := m.MustSave()
	if deleted, err := m.Prune(t.Context(), "", 1); err != nil || len(deleted) != 1 || deleted[0] != info.Name || slices.Contains(f.keys(), "a/b/"+info.Name) {
		t.Errorf("pruned %q, %v; there are %q", deleted, err, f.keys())
	}
	testenv.NoError(t, os.Remove(second.Location))
	testenv.Equal(t, len(testenv.Must(m.Delete(t.Context(), []string{second.Name}))(t)), 1, "what is on S3 only:")
	testenv.WantError(t, testenv.Err(m.Delete(t.Context(), []string{second.Name})), "no such snapshot")
	testenv.Equal(t, len(f.keys()), 2, "left:")
}

// TestS3ForOneRequest: a request may mean an object store of its own; the next one does not.
func TestS3ForOneRequest(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	m.Put("a", "1")
	m.o.S3 = func(ctx context.Context) (*config.S3, error) {
		if a := QueryOf(ctx); a.On != nil && *a.On {
			return config.ParseS3(a.Values)
		}
		return nil, nil
	}
	on := true
	text := testenv.Must(json.Marshal(config.AskedS3{On: &on, Values: f.settings()}))(t)
	own := url.Values{S3Query: {string(text)}}.Encode()
	ask := func(method, path, query string, out any) {
		t.Helper()
		w := httptest.NewRecorder()
		m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path+"?"+query, nil))
		testenv.Require(t, w.Code == http.StatusOK, "%s %s: %d %s", method, path, w.Code, w.Body)
		testenv.NoError(t, json.Unmarshal(w.Body.Bytes(), out))
	}
	var here, there Info
	ask(http.MethodPost, Path, "", &here)
	m.Clock.Step(time.Second)
	if keys := f.keys(); len(keys) > 0 {
		t.Errorf("the server's own request copied %q", keys)
	}
	ask(http.MethodPost, Path, own, &there)
	if keys := f.keys(); len(keys) != 1 || keys[0] != "a/b/"+there.Name {
		t.Errorf("there are %q, want %s", keys, there.Name)
	}
	var list []Info
	if ask(http.MethodGet, Path, "", &list); len(list) != 2 {
		t.Errorf("%d are listed here, want 2", len(list))
	}
	if ask(http.MethodGet, Path, own, &list); len(list) != 3 || list[2].Location != "s3://boats/a/b/"+there.Name {
		t.Errorf("%+v are listed", list)
	}
	var gone Removed
	if ask(http.MethodPost, Path+"/prune", "retention=0", &gone); len(gone.Deleted) != 2 || len(f.keys()) != 1 {
		t.Errorf("pruned %+v here; there are %q", gone, f.keys())
	}
	gone = Removed{}
	if ask(http.MethodDelete, Path, own+"&name="+there.Name, &gone); len(gone.Deleted) != 1 || len(f.keys()) > 0 {
		t.Errorf("deleted %+v; there are %q", gone, f.keys())
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, Path+"?s3=nonsense", nil))
	testenv.True(t, w.Code == http.StatusBadRequest, "nonsense is answered with %d %s", w.Code, w.Body)
}

// TestS3LargeFile: a file goes in parts, each read from the disk when it is sent.
func TestS3LargeFile(t *testing.T) {
	f := newFakeS3(t)
	b := testenv.Must(openBucket(mustS3(t, f.settings())))(t)
	defer b.close()
	data := make([]byte, 3*partSize+12345)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	path := filepath.Join(t.TempDir(), "large")
	testenv.NoError(t, os.WriteFile(path, data, 0o600))
	testenv.NoError(t, b.upload(t.Context(), "large", path))
	if string(f.objects["a/b/large"]) != string(data) || f.largest != partSize {
		t.Errorf("%d bytes arrived, %d at once", len(f.objects["a/b/large"]), f.largest)
	}
}

// TestScheduleWithS3: what S3 did not take is tried again without another file, and each place keeps its own number.
func TestScheduleWithS3(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	settings := mustS3(t, f.settings())
	m.o.S3 = func(context.Context) (*config.S3, error) { return settings, nil }
	f.deny = true
	board := m.scheduler()
	m.Put("/registry/pods/a/one", "1")
	m.pass(12 * time.Hour)
	if c := board.Components()[0]; c.State != status.Degraded || !strings.Contains(c.Message, "is on this machine, but not in the object store") ||
		!strings.Contains(c.Message, "check the access key") || len(m.scheduledInFolder()) != 1 {
		t.Errorf("%+v", c)
	}
	f.mu.Lock()
	f.deny = false
	f.mu.Unlock()
	m.pass(retryDelay)
	if c := board.Components()[0]; c.State != status.Running || len(m.scheduledInFolder()) != 1 || len(f.keys()) != 1 {
		t.Errorf("%+v; here %q, on S3 %q", c, m.scheduledInFolder(), f.keys())
	}
	for i := range 3 {
		m.Put("/registry/pods/a/one", strconv.Itoa(i))
		m.pass(12 * time.Hour)
	}
	testenv.False(t, len(m.scheduledInFolder()) != 4 || len(f.keys()) != 2, "here %q, on S3 %q", m.scheduledInFolder(), f.keys())
	f.mu.Lock()
	before := len(f.seen)
	f.mu.Unlock()
	m.pass(12 * time.Hour)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.seen[before:] {
		testenv.False(t, strings.HasPrefix(r, "PUT") || strings.HasPrefix(r, "POST"), "nothing had changed, and there was a %s", r)
	}
}

func (m *machine) scheduledInFolder() []string {
	m.t.Helper()
	return scheduled(testenv.Must(m.folder.list())(m.t))
}

// TestS3ErrorsHaveHints: every answer that a user can do something about says what.
func TestS3ErrorsHaveHints(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	try := func(change map[string]string) error {
		values := f.settings()
		maps.Copy(values, change)
		m.o.S3 = func(context.Context) (*config.S3, error) { return config.ParseS3(values) }
		m.Clock.Step(time.Second)
		_, err := m.Save(t.Context(), "")
		return err
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections and says nothing
	testenv.NoError(t, err)
	defer silent.Close()
	for want, change := range map[string]map[string]string{
		"make the bucket planes first": {config.S3Bucket: "planes"},
		"check the access key":         {config.S3AccessKey: "other"},
		"certificate":                  {config.S3EndpointCA: ""},
		"deadline exceeded":            {config.S3Endpoint: silent.Addr().String(), config.S3Timeout: "300ms"},
		"proxyconnect":                 {config.S3Proxy: "http://127.0.0.1:1", config.S3Timeout: "1m"},
	} {
		err := try(change)
		testenv.WantError(t, err, want, "is saved in "+m.o.Dir)
	}
	for name, change := range map[string]map[string]string{"any certificate": {config.S3EndpointCA: "", config.S3SkipVerify: "true"}, "as it should be": {}} {
		testenv.Check(t, try(change), "%s", name)
	}
	m.o.S3 = func(context.Context) (*config.S3, error) { return nil, x509.UnknownAuthorityError{} }
	list, err := m.List(t.Context())
	if err != nil || len(list) != 8 || list[7].Problem == "" {
		t.Errorf("%d snapshots, %v; what is here is listed, and what is wrong with S3", len(list), err)
	}
}
