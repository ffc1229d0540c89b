// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/joining/member"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestClusterSettingsAreRequestedOnce: what the cluster said is asked for once; a damaged note is not taken for none.
func TestClusterSettingsAreRequestedOnce(t *testing.T) {
	o := options(t.TempDir())
	dir := o.ServerDir
	testenv.NoError(t, os.Mkdir(dir, 0o700))
	j := &admission.Joined{Settings: o.Cluster, ServerSettings: o.ServerSettings, Peers: []string{"10.0.0.1:6443"}}
	testenv.NoError(t, j.Write(dir))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, member.Request{Token: "CRC1" + strings.Repeat("0", 64) + "::agent:x"})), "for agents")
	peers := filepath.Join(dir, roster.PeersFile)
	testenv.NoError(t, os.WriteFile(peers, []byte(`["10.0.0.1:6443"]`), 0o600))
	got, err := Join(t.Context(), o, member.Request{Address: "127.0.0.1:1", Token: "x"})
	testenv.False(t, err != nil || fmt.Sprint(got) != fmt.Sprint(j), "%v, %v, want %v", got, err, j)
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, admission.JoinedFile), []byte("{"), 0o600))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, member.Request{})), "damaged")
	testenv.NoError(t, os.Remove(filepath.Join(dir, admission.JoinedFile)))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, member.Request{Token: "CRC1" + strings.Repeat("0", 64) + "::agent:x"})), "for agents")
	testenv.NoError(t, os.MkdirAll(filepath.Join(o.StoreDir, "log"), 0o700))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, member.Request{Token: "x"})), "cannot join another one")
}
