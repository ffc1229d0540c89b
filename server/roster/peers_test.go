// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPeersAreKept: the others' addresses follow the members, and a damaged file is not taken for none.
func TestPeersAreKept(t *testing.T) {
	dir := t.TempDir()
	self := raftstore.Member{Address: "10.0.0.1:6443", Self: true}
	two, three := raftstore.Member{Address: "10.0.0.2:6443"}, raftstore.Member{Address: "10.0.0.3:6443"}
	for _, tt := range []struct {
		members []raftstore.Member
		want    string
	}{
		{[]raftstore.Member{self}, "[]"},
		{[]raftstore.Member{three, self, two}, "[10.0.0.2:6443 10.0.0.3:6443]"},
		{nil, "[10.0.0.2:6443 10.0.0.3:6443]"}, // not known yet
		{[]raftstore.Member{self, three}, "[10.0.0.3:6443]"},
		{[]raftstore.Member{self}, "[]"},
	} {
		testenv.NoError(t, savePeers(dir, tt.members))
		testenv.Equal(t, fmt.Sprint(testenv.Must(ReadPeerAddresses(dir))(t)), tt.want, "%v:", tt.members)
	}
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, PeersFile), []byte("{"), 0o600))
	testenv.WantError(t, testenv.Err(ReadPeerAddresses(dir)), PeersFile)
}
