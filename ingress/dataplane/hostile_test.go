// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// TestExpressionsTakeBoundedTime: what a path costs follows from its length and from all expressions that it may be compared with.
func TestExpressionsTakeBoundedTime(t *testing.T) {
	backend := backendServer(t, showing("b"))
	slow := table.Host{}
	for i := range 20 {
		slow.Routes = append(slow.Routes, table.Route{Path: fmt.Sprintf("/%d(%sx)", i, strings.Repeat("(.*a){40}|", 4)), Kind: table.PathRegex, Backends: []table.Backend{service("b")}})
	}
	f := newFixture(t, Options{}, append(site(t, "", backend), section(t, table.HostKey("s", "slow"), slow))...)
	long := "/" + strings.Repeat("a", 8<<10)
	for _, c := range []struct {
		url    string
		status int
	}{{"http://slow/0x", 200}, {"http://slow/none", 200}, {"http://slow" + long, 414}, {"http://other" + long, 200}} {
		exchanged{url: c.url, status: c.status}.check(t, f)
	}
}
