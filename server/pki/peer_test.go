// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// The authority for servers signs nothing else, so its key may not be another's.
func TestPeerAuthorityIsNoOther(t *testing.T) {
	for _, s := range []Signer{ServerCA, ClientCA, RequestHeaderCA} {
		dir := t.TempDir()
		p, _ := open(t, dir, today)
		for from, to := range map[string]string{p.CAFile(s): p.CAFile(PeerCA), p.CAKeyFile(s): p.CAKeyFile(PeerCA)} {
			data := testenv.Must(os.ReadFile(from))(t)
			testenv.NoError(t, os.WriteFile(to, data, 0o600))
		}
		o, _ := options(dir, today)
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), filepath.Base(p.CAFile(s))) {
			t.Errorf("%s in its place: %v", s, err)
		}
	}
}
