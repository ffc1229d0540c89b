// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStatusWhileTheAPIServerIsStalled: status tells of the servers though the API server answers nothing, as without a
// quorum.
func TestStatusWhileTheAPIServerIsStalled(t *testing.T) {
	asked := make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-asked:
		case <-r.Context().Done():
			t.Error("the servers are asked only when the API server was given up")
		}
		http.Error(w, "no leader", http.StatusServiceUnavailable)
	}))
	defer api.Close()
	dir := t.TempDir()
	p := config.Paths{AdminSocket: filepath.Join(dir, "admin.sock"), AdminKubeconfig: filepath.Join(dir, "admin.kubeconfig"),
		TokenFile: filepath.Join(dir, "token"), AgentTokenFile: filepath.Join(dir, "agent-token"), DataDir: dir}
	testenv.NoError(t, writeAdmin(p, api.URL))
	var once sync.Once
	say := func(w http.ResponseWriter, v any) { testenv.Check(t, json.NewEncoder(w).Encode(v)) }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		say(w, status.Report{Running: true, Role: "server", Ready: time.Now()})
	})
	mux.HandleFunc("GET "+status.ServersPath, func(w http.ResponseWriter, _ *http.Request) {
		say(w, status.Servers{Servers: []status.ClusterServer{{Name: "board1"}, {Name: "board2"}}, Problems: []string{"board2 is silent"}})
		once.Do(func() { close(asked) })
	})
	socket := testenv.Must(net.Listen("unix", p.AdminSocket))(t)
	admin := httptest.NewUnstartedServer(mux)
	testenv.NoError(t, admin.Listener.Close())
	admin.Listener = socket
	admin.Start()
	defer admin.Close()
	r := testenv.Must((&App{}).findStatus(t.Context(), &config.Tool{Paths: p}))(t)
	testenv.False(t, r.Servers == nil || len(r.Servers.Servers) != 2, "status says of the servers %v; problems: %q", r.Servers, r.Problems)
}

// TestStatusNamesRecordsThatWereSetAside: also while coracle does not run, and until the directory is removed.
func TestStatusNamesRecordsThatWereSetAside(t *testing.T) {
	p := config.NewPaths(t.TempDir(), "")
	aside := p.ContainerdRoot + ".damaged-1"
	testenv.NoError(t, os.MkdirAll(aside, 0o700))
	testenv.NoError(t, os.WriteFile(p.ContainerdRoot+".json",
		[]byte(`{"directories":[{"path":"`+aside+`","why":"meta.db: page 45 is used twice"}]}`), 0o600))
	problems := func() string {
		return strings.Join(testenv.Must((&App{}).findStatus(t.Context(), &config.Tool{Paths: p}))(t).Problems, "\n")
	}
	want := "containerd's records were damaged (meta.db: page 45 is used twice): set aside in " + aside + "; images are imported and pulled again."
	testenv.True(t, strings.Contains(problems(), want), "status says: %s", problems())
	testenv.NoError(t, os.Remove(aside))
	testenv.False(t, strings.Contains(problems(), "set aside"), "after its removal status says: %s", problems())
}

// TestStatusNamesOriginsOfImages: in text and in JSON, and not where machines share no content.
func TestStatusNamesOriginsOfImages(t *testing.T) {
	r := &status.Report{Running: true, Content: &status.Content{
		Peers: status.ContentCount{Blobs: 3, Bytes: 25_300_000}, Outside: status.ContentCount{Blobs: 1, Bytes: 999},
		Sent: status.ContentCount{Blobs: 12, Bytes: 4_100_000_000}, Refused: 2,
	}}
	text := func() string {
		var b strings.Builder
		testenv.NoError(t, printStatus(&b, r, time.Now()))
		return b.String()
	}
	const want = "content  from other machines 25.3 MB in 3 blobs, from registries 999 B in 1 blob, sent 4.1 GB in 12 blobs; refused: 2, which"
	testenv.True(t, strings.Contains(text(), want), "status says: %s", text())
	encoded := string(testenv.Must(json.Marshal(r))(t))
	testenv.True(t, strings.Contains(encoded, `"content":{"peers":{"blobs":3,"bytes":25300000},"outside":{"blobs":1,"bytes":999},"sent":{"blobs":12,"bytes":4100000000},"refused":2}`),
		"status says: %s", encoded)
	r.Content = nil
	testenv.False(t, strings.Contains(text(), "content"), "status says without sharing: %s", text())
}
