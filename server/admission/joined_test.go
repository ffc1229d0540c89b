// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRecordedServerBindsFirstServer: what the first server wrote down for another one binds it as long as there is
// another one.
func TestRecordedServerBindsFirstServer(t *testing.T) {
	dir := t.TempDir()
	file, peers := filepath.Join(dir, JoinedFile), filepath.Join(dir, roster.PeersFile)
	testenv.NoError(t, (&Joined{Founder: true, ServerSettings: clusterconfig.ServerSettings{NodePortRange: "30000-32767"}, Settings: clusterconfig.Settings{
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		Domain: clusterconfig.DefaultDomain,
	}}).Write(dir))
	testenv.NoError(t, os.WriteFile(peers, []byte(`["10.0.0.2:6443"]`), 0o600))
	if j, err := WasJoined(dir); err != nil || j == nil || j.NodePortRange != "30000-32767" {
		t.Errorf("with another server: %v, %v", j, err)
	}
	testenv.NoError(t, os.Remove(peers))
	if j, err := WasJoined(dir); err != nil || j != nil {
		t.Errorf("the other one never came: %v, %v", j, err)
	}
	testenv.Fails(t, testenv.Err(os.Lstat(file)), "the note is there still")
}
