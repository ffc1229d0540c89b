// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"strings"
	"testing"
)

// TestUnderlaySaid: a node tells others where they find its pods, unless that is its own address.
func TestUnderlaySaid(t *testing.T) {
	addrs := func(texts string) (out []netip.Addr) {
		for text := range strings.FieldsSeq(texts) {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	for _, c := range []struct {
		own, external string
		on            bool
		want          string
	}{
		{"10.0.0.5", "203.0.113.5", false, ""},
		{"10.0.0.5", "203.0.113.5", true, "203.0.113.5"},
		{"10.0.0.5 fd00::5", "203.0.113.5", true, "203.0.113.5,fd00::5"},
		{"10.0.0.5 fd00::5", "2001:db8::5 203.0.113.5", true, "203.0.113.5,2001:db8::5"},
		{"10.0.0.5", "203.0.113.5 2001:db8::5", true, "203.0.113.5"},
		{"10.0.0.5", "10.0.0.5", true, ""},
	} {
		o := Options{NodeIPs: addrs(c.own), ExternalIPs: addrs(c.external), NetworkExternal: c.on}
		if got, err := o.underlay(); err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
