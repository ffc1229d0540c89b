// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var settings = clusterconfig.Settings{
	PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	DNS: netip.AddrFrom4([4]byte{10, 43, 0, 10}), Domain: clusterconfig.DefaultDomain,
}

// TestClusterSettingsAreRequestedOnce: what the cluster said is asked for once; a damaged note is not taken for none.
func TestClusterSettingsAreRequestedOnce(t *testing.T) {
	dir := t.TempDir()
	o := RequestOptions{Folders: secrets.Folders{Server: dir}, StoreDir: filepath.Join(dir, "store")}
	j := &Joined{Settings: settings, NodePortRange: "30000-32767", Peers: []string{"10.0.0.1:6443"}}
	testenv.NoError(t, writeJoined(filepath.Join(dir, JoinedFile), j))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, Request{Token: "CRC1" + strings.Repeat("0", 64) + "::agent:x"})), "for agents")
	peers := filepath.Join(dir, roster.PeersFile)
	testenv.NoError(t, os.WriteFile(peers, []byte(`["10.0.0.1:6443"]`), 0o600))
	got, err := Join(t.Context(), o, Request{Address: "127.0.0.1:1", Token: "x"})
	testenv.False(t, err != nil || fmt.Sprint(got) != fmt.Sprint(j), "%v, %v, want %v", got, err, j)
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, JoinedFile), []byte("{"), 0o600))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, Request{})), "damaged")
	testenv.NoError(t, os.Remove(filepath.Join(dir, JoinedFile)))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, Request{Token: "CRC1" + strings.Repeat("0", 64) + "::agent:x"})), "for agents")
	testenv.NoError(t, os.MkdirAll(filepath.Join(o.StoreDir, "log"), 0o700))
	testenv.WantError(t, testenv.Err(Join(t.Context(), o, Request{Token: "x"})), "cannot join another one")
}

// TestRecordedServerBindsFirstServer: what the first server wrote down for another one binds it as long as there is
// another one.
func TestRecordedServerBindsFirstServer(t *testing.T) {
	dir := t.TempDir()
	file, peers := filepath.Join(dir, JoinedFile), filepath.Join(dir, roster.PeersFile)
	testenv.NoError(t, writeJoined(file, &Joined{Founder: true, Settings: settings, NodePortRange: "30000-32767"}))
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

// TestFlagsOfAServerThatJoins: those in which all servers have to agree are compared, whether they were given or not.
func TestFlagsOfAServerThatJoins(t *testing.T) {
	j := Request{Address: "10.0.0.1:6443", Flags: map[string]string{"profile": "", "ingress-host-owner": "path"}}
	for _, has := range []map[string]string{nil, j.Flags, {"profile": "", "of-a-later-version": "x"}} {
		testenv.NoError(t, j.checkFlags(has))
	}
	testenv.WantError(t, j.checkFlags(map[string]string{"profile": "cis", "ingress-host-owner": "namespace"}),
		`--profile: this server has "", but the one at 10.0.0.1:6443 has "cis"`, `--ingress-host-owner: this server has "path"`)
}
