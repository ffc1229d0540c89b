// SPDX-License-Identifier: Apache-2.0

package uml

import (
	"regexp"
	"strings"
	"testing"
)

// part is a part of a test that did not fail in the guest.
type part struct {
	name    string // empty: the test itself
	skipped bool
}

var ended = regexp.MustCompile(`(?m)^ *--- (PASS|SKIP): (\S+) \(`)

// partsOf are the test and its parts, as `go test -v` has them in what the guest said.
func partsOf(test, output string) []part {
	var out []part
	for _, m := range ended.FindAllStringSubmatch(output, -1) {
		if name, ok := strings.CutPrefix(m[2]+"/", test+"/"); ok {
			out = append(out, part{strings.TrimSuffix(name, "/"), m[1] == "SKIP"})
		}
	}
	return out
}

// repeat has this test end as it did in the guest, part by part: so its parts are counted, and who skips something
// there says so here.
func repeat(t *testing.T, output string) {
	t.Helper()
	all := partsOf(t.Name(), output)
	if len(all) == 0 {
		t.Fatalf("the guest did not run %s", t.Name())
	}
	end := func(t *testing.T, p part) {
		if p.skipped {
			t.Skip("skipped in the guest, which says why above (go test -v)")
		}
	}
	for _, p := range all {
		if p.name != "" {
			t.Run(p.name, func(t *testing.T) { end(t, p) })
		}
	}
	for _, p := range all {
		if p.name == "" {
			end(t, p)
		}
	}
}
