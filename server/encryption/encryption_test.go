// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var secrets = []string{"secrets"}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func ensure(t *testing.T, o Options) layout {
	t.Helper()
	o.Logger = quiet
	path := testenv.Must(Ensure(t.Context(), o))(t)
	l := testenv.Must(readLayout(path))(t)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", fi.Mode(), err)
	}
	return l
}

func TestEnsureKeepsTheKeyAndFollowsTheList(t *testing.T) {
	dir := t.TempDir()
	first := ensure(t, Options{Dir: dir, Resources: secrets})
	testenv.Require(t, slices.Equal(first.active, []string{"secrets"}) && len(first.keys) == 1 && first.keys[0].Name == "key1",
		"%+v", first)
	more := ensure(t, Options{Dir: dir, Established: true, Resources: []string{"secrets", "configmaps", "*.apps", "widgets.example.com", "*.*"}})
	if !slices.Equal(more.keys, first.keys) || !slices.Equal(more.active, []string{"secrets", "configmaps", "widgets.example.com", "*.apps", "*.*"}) {
		t.Fatalf("%+v", more)
	}
	off := ensure(t, Options{Dir: dir, Established: true})
	testenv.Require(t, len(off.active) == 0 && len(off.retired) == 5, "%+v", off)
	less := ensure(t, Options{Dir: dir, Established: true, Resources: []string{"secrets", "widgets.example.com"}})
	if !slices.Equal(less.active, []string{"secrets", "widgets.example.com"}) || !slices.Equal(less.retired, []string{"configmaps", "*.apps", "*.*"}) {
		t.Fatalf("%+v", less)
	}
}

func TestOffFromTheBeginning(t *testing.T) {
	dir := t.TempDir()
	off := ensure(t, Options{Dir: dir})
	on := ensure(t, Options{Dir: dir, Established: true, Resources: secrets})
	if len(off.active) != 0 || !slices.Equal(on.active, secrets) || len(on.retired) != 0 || !slices.Equal(on.keys, off.keys) {
		t.Fatalf("%+v, then %+v", off, on)
	}
}

func TestBadEncryptionConfigurationIsRefused(t *testing.T) {
	dir := t.TempDir()
	testenv.WantError(t, testenv.Err(Ensure(t.Context(), Options{Dir: dir, Established: true, Logger: quiet})), "backup")
	for _, bad := range []string{"Secrets", "a b", "", "deployments.*"} {
		testenv.Fails(t, testenv.Err(Ensure(t.Context(), Options{Dir: t.TempDir(), Resources: []string{bad}, Logger: quiet})), "%q was taken", bad)
	}
	path := filepath.Join(dir, configFile)
	for _, damaged := range []string{"", "{", "kind: Pod"} {
		testenv.NoError(t, os.WriteFile(path, []byte(damaged), 0o600))
		if _, err := Ensure(t.Context(), Options{Dir: dir, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%q: %v", damaged, err)
		}
		if now, _ := os.ReadFile(path); string(now) != damaged {
			t.Errorf("%q was overwritten", damaged)
		}
	}
}

func TestConfigurationByHandIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, configFile)
	const byHand = `{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: [secrets], providers: [{identity: {}}]}]}`
	testenv.NoError(t, os.WriteFile(path, []byte(byHand), 0o600))
	testenv.Must(Ensure(t.Context(), Options{Dir: dir, Established: true, Logger: quiet}))(t)
	if now, _ := os.ReadFile(path); string(now) != byHand {
		t.Error("it was overwritten")
	}
	testenv.WantError(t, Rotation{Shared: Shared{Dir: dir}}.Run(t.Context()), "by hand")
	if s, err := ReadStatus(dir); err != nil || !s.ByHand {
		t.Errorf("%+v, %v", s, err)
	}
}

// cluster is an API server as far as a rotation needs one: Secrets with names and the key each was written with.
type cluster struct {
	*httptest.Server
	mu      sync.Mutex
	dir     string
	loaded  []byte
	secrets map[string]string
	refuse  bool // an admission webhook that says no
	expire  bool // the next continue token is too old
}

func newCluster(t *testing.T, dir string) *cluster {
	c := &cluster{dir: dir, secrets: map[string]string{}}
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		if s, ok := v.(metav1.Status); ok {
			w.WriteHeader(int(s.Code))
		}
		testenv.Check(t, json.NewEncoder(w).Encode(v))
	}
	mux.HandleFunc("GET /api", func(w http.ResponseWriter, _ *http.Request) { reply(w, metav1.APIVersions{Versions: []string{"v1"}}) })
	mux.HandleFunc("GET /apis", func(w http.ResponseWriter, _ *http.Request) { reply(w, metav1.APIGroupList{}) })
	mux.HandleFunc("GET /api/v1", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, metav1.APIResourceList{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "secrets", Namespaced: true, Kind: "Secret", Verbs: metav1.Verbs{"list", "patch"}},
			{Name: "pods", Namespaced: true, Kind: "Pod", Verbs: metav1.Verbs{"list", "patch"}}}})
	})
	mux.HandleFunc("GET /api/v1/secrets", func(w http.ResponseWriter, r *http.Request) { c.list(w, r, reply) })
	mux.HandleFunc("PATCH /api/v1/namespaces/{ns}/secrets/{name}", func(w http.ResponseWriter, r *http.Request) { c.patch(w, r, reply) })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, _ = io.WriteString(w, "# HELP x\nother{hash=\"1\"} 1\napiserver_encryption_config_controller_last_config_info{apiserver_id_hash=\"sha256:00\",hash=\""+
			contentHash(c.loaded)+"\"} 1\n")
	})
	c.Server = httptest.NewServer(mux)
	t.Cleanup(c.Close)
	return c
}

func (c *cluster) list(w http.ResponseWriter, r *http.Request, reply func(http.ResponseWriter, any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := r.URL.Query().Get("continue")
	if from != "" && c.expire {
		c.expire = false
		reply(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonExpired, Code: http.StatusGone})
		return
	}
	var page metav1.PartialObjectMetadataList
	page.APIVersion, page.Kind = "meta.k8s.io/v1", "PartialObjectMetadataList"
	for _, name := range slices.Sorted(maps.Keys(c.secrets)) {
		if name <= from {
			continue
		}
		if len(page.Items) == 2 {
			page.Continue = page.Items[1].Name
			break
		}
		page.Items = append(page.Items, object(name))
	}
	reply(w, page)
}

func (c *cluster) patch(w http.ResponseWriter, r *http.Request, reply func(http.ResponseWriter, any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := r.PathValue("name")
	switch {
	case c.refuse:
		reply(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Message: "the webhook says no", Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden})
		return
	case name == "gone":
		delete(c.secrets, name)
		reply(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
		return
	}
	l, err := readLayout(filepath.Join(c.dir, configFile))
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	c.secrets[name] = l.keys[0].Name
	reply(w, object(name))
}

func object(name string) metav1.PartialObjectMetadata {
	return metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}}
}

func TestRotationRewritesAllObjectsWithTheNewKey(t *testing.T) {
	s := newSeveral(t, 1)
	s.api.mu.Lock()
	s.api.secrets = map[string]string{"a": "key1", "b": "key1", "c": "key1", "d": "key1", "gone": "key1"}
	s.api.expire = true
	s.api.mu.Unlock()
	old := testenv.Must(readLayout(filepath.Join(s.dirs[0], configFile)))(t)
	objects := 0
	r := s.rotation(0)
	r.Progress = func(_ Stage, n int, _ []string) { objects = max(objects, n) }
	testenv.NoError(t, r.Run(t.Context()))
	s.done("key2")
	status, err := ReadStatus(s.dirs[0])
	testenv.Require(t, err == nil && status.Stage == StageDone && status.Key == "key2" && !status.Finished.IsZero(), "%+v, %v", status, err)
	testenv.False(t, len(s.api.secrets) != 4 || objects < 5, "%d Secrets, %d written", len(s.api.secrets), objects)
	if l := ensure(t, Options{Dir: s.dirs[0], Established: true, Resources: secrets}); l.keys[0].Secret == old.keys[0].Secret {
		t.Error("the key has a new name and the old secret")
	}
}

// TestRotationOfUnknownStateRestarts: files that say that a rotation is under way, of which the store knows nothing,
// as after the store was set back, do not keep the key from being rotated.
func TestRotationOfUnknownStateRestarts(t *testing.T) {
	s := newSeveral(t, 1)
	testenv.NoError(t, (state{Stage: StageReencrypt, NewKey: "key7"}).write(s.dirs[0]))
	testenv.NoError(t, s.rotation(0).Run(t.Context()))
	s.done("key2")
	if status, err := ReadStatus(s.dirs[0]); err != nil || status.Stage != StageDone {
		t.Errorf("%+v, %v", status, err)
	}
}

// TestUnreadableStateIsNotCalledDamaged: a user who may not read the file is not advised to remove it.
func TestUnreadableStateIsNotCalledDamaged(t *testing.T) {
	dir := t.TempDir()
	ensure(t, Options{Dir: dir, Resources: secrets})
	path := filepath.Join(dir, stateFile)
	testenv.NoError(t, os.Mkdir(path, 0o700))
	if _, err := ReadStatus(dir); err == nil || strings.Contains(err.Error(), "emove that file") {
		t.Errorf("it cannot be read: %v", err)
	}
	testenv.NoError(t, os.Remove(path))
	testenv.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	testenv.WantError(t, testenv.Err(ReadStatus(dir)), "Remove that file")
}

func TestOneRotationAtATime(t *testing.T) {
	s := newSeveral(t, 1)
	r, second := s.rotation(0), s.rotation(0)
	r.Progress = func(stage Stage, _ int, _ []string) {
		if err := second.Run(t.Context()); stage != StageDone && (err == nil || !strings.Contains(err.Error(), "another process")) {
			t.Errorf("at the stage %s a second one: %v", stage, err)
		}
	}
	testenv.NoError(t, r.Run(t.Context()))
}

func TestRotateKeepsTheOldKeyWhileAnythingNeedsIt(t *testing.T) {
	s := newSeveral(t, 1)
	refuse := func(refuse bool) {
		s.api.mu.Lock()
		defer s.api.mu.Unlock()
		s.api.refuse = refuse
	}
	refuse(true)
	if err := s.rotation(0).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "webhook says no") {
		t.Fatalf("%v", err)
	}
	if status, err := ReadStatus(s.dirs[0]); err != nil || !slices.Equal(status.Readable, []string{"key2", "key1"}) {
		t.Fatalf("%+v, %v", status, err)
	}
	refuse(false)
	testenv.NoError(t, s.rotation(0).Run(t.Context()))
	s.done("key2")
}

// TestMetricsNameLoadedEncryptionConfiguration: the API server's metrics name the configuration that it has loaded.
func TestMetricsNameLoadedEncryptionConfiguration(t *testing.T) {
	c := newCluster(t, t.TempDir())
	c.loaded = []byte("a configuration")
	hashes, err := LoadedHashes(t.Context(), &rest.Config{Host: c.URL})
	testenv.False(t, err != nil || !slices.Equal(hashes, []string{contentHash(c.loaded)}), "%q, %v", hashes, err)
}

func TestFingerprintChangesWithKeysOnly(t *testing.T) {
	print := func(dir string) string {
		t.Helper()
		return testenv.Must(Fingerprint(dir))(t)
	}
	dir, other := t.TempDir(), t.TempDir()
	testenv.Equal(t, print(dir), "", "without keys:")
	ensure(t, Options{Dir: dir, Resources: []string{"secrets"}})
	ensure(t, Options{Dir: other, Resources: []string{"secrets"}})
	first := print(dir)
	testenv.False(t, first == "" || first == print(other), "two clusters have the same")
	ensure(t, Options{Dir: dir, Resources: []string{"secrets", "configmaps"}, Established: true})
	testenv.Equal(t, print(dir), first, "another resource changes it:")
	l := testenv.Must(readLayout(filepath.Join(dir, configFile)))(t)
	k := newKey(l.keyNames())
	l.keys = append(l.keys, k)
	data, err := l.encode()
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, configFile), data, 0o600)
	}
	testenv.False(t, err != nil || print(dir) == first, "another key does not change it, %v", err)
}

// TestRotationAndAdmissionExcludeEachOther: a rotation and the admission of a server keep one another out, and a
// rotation that was interrupted admits no server.
func TestRotationAndAdmissionExcludeEachOther(t *testing.T) {
	dir := t.TempDir()
	ensure(t, Options{Dir: dir, Resources: []string{"secrets"}})
	release := testenv.Must(LockRotation(dir))(t)
	testenv.WantError(t, Rotation{Shared: Shared{Dir: dir}}.Run(t.Context()), "a server is joining")
	release()
	testenv.NoError(t, (state{Stage: StageReencrypt, NewKey: "key2"}).write(dir))
	testenv.ErrorIs(t, testenv.Err(LockRotation(dir)), errChanging, "a server is admitted in the middle of a rotation")
}
