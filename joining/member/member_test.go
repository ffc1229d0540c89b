// SPDX-License-Identifier: Apache-2.0

package member

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFlagsOfAServerThatJoins: those in which all servers have to agree are compared, whether they were given or not.
func TestFlagsOfAServerThatJoins(t *testing.T) {
	r := Request{Address: "10.0.0.1:6443", Flags: map[string]string{"profile": "", "ingress-host-owner": "path"}}
	for _, has := range []map[string]string{nil, r.Flags, {"profile": "", "of-a-later-version": "x"}} {
		testenv.NoError(t, r.CheckFlags(has))
	}
	testenv.WantError(t, r.CheckFlags(map[string]string{"profile": "cis", "ingress-host-owner": "namespace"}),
		`--profile: this server has "", but the one at 10.0.0.1:6443 has "cis"`, `--ingress-host-owner: this server has "path"`)
}
