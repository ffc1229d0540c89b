// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNodeNamesClocksThatAreOff: a node asks a server, and compares its own clock with that of the server. A machine
// without a node, and a server of an older version, have no problem.
func TestNodeNamesClocksThatAreOff(t *testing.T) {
	report, old := status.ClocksReport{}, false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if old || r.URL.Path != status.ClocksPath {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(report)
	}))
	defer server.Close()
	dir := t.TempDir()
	testenv.Equal(t, len(clockProblems(t.Context(), dir)), 0, "without a node: problems")
	path := nodecreds.In(filepath.Join(dir, "cred")).KubeletKubeconfig
	testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	testenv.NoError(t, clientcmd.WriteToFile(api.Config{
		Clusters: map[string]*api.Cluster{"c": {Server: server.URL}}, Contexts: map[string]*api.Context{"c": {Cluster: "c"}}, CurrentContext: "c",
	}, path))
	for name, tt := range map[string]struct {
		report status.ClocksReport
		old    bool
		want   []string
	}{
		"all agree":        {report: status.ClocksReport{Now: time.Now()}},
		"a server's":       {report: status.ClocksReport{Now: time.Now(), Problems: []string{"b: its clock is 1m0s behind"}}, want: []string{"b: its clock is"}},
		"this one":         {report: status.ClocksReport{Now: time.Now().Add(3 * time.Hour)}, want: []string{"this machine's clock is 3h0m0s behind that of the server"}},
		"this one, ahead":  {report: status.ClocksReport{Now: time.Now().AddDate(0, 0, -400)}, want: []string{"this machine's clock is 400 days ahead of that of the server"}},
		"an older version": {old: true},
	} {
		report, old = tt.report, tt.old
		got := clockProblems(t.Context(), dir)
		testenv.Require(t, len(got) == len(tt.want), "%s: %q, want %q", name, got, tt.want)
		for i, want := range tt.want {
			testenv.True(t, strings.HasPrefix(got[i], want), "%s: %q, want %q", name, got[i], want)
		}
		testenv.Equal(t, len(clockResults(t.Context(), dir)), len(tt.want), "%s: results", name)
	}
}
