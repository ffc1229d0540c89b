// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestServiceNamesAreLabels(t *testing.T) {
	seen := map[string]string{}
	for _, gateway := range []string{
		"web", "a.b", "a-b", strings.Repeat("a", 55), strings.Repeat("a", 56), strings.Repeat("a", 253), strings.Repeat("a", 252) + "b", strings.Repeat("a.", 100) + "a",
	} {
		name := ServiceName(gateway)
		if other, ok := seen[name]; ok {
			t.Errorf("the Gateways %s and %s have the same Service %s", other, gateway, name)
		}
		seen[name] = gateway
		if wrong := validation.IsDNS1035Label(name); len(wrong) > 0 {
			t.Errorf("the name %s: %v", name, wrong)
		}
		if wrong := validation.IsValidLabelValue(LabelValue(gateway)); len(wrong) > 0 {
			t.Errorf("the label %s: %v", LabelValue(gateway), wrong)
		}
	}
	testenv.Equal(t, ServiceName("web"), "gateway-web", "the Service of web is")
}

func TestHostNamesIntersectWithListeners(t *testing.T) {
	for _, c := range []struct{ pattern, name, both string }{
		{"", "a.example", "a.example"},
		{"*.example", "a.example", "a.example"},
		{"*.example", "b.a.example", "b.a.example"},
		{"*.example", "*.a.example", "*.a.example"},
		{"*.example", "", "*.example"},
		{"*.example", "example", "none"},
		{"*.example", "aexample", "none"},
		{"a.example", "a.example", "a.example"},
		{"a.example", "b.example", "none"},
		{"*.a.example", "*.b.example", "none"},
	} {
		for range 2 {
			got, ok := intersect(c.pattern, c.name)
			if !ok {
				got = "none"
			}
			testenv.Equal(t, got, c.both, "%q and %q have the hosts", c.pattern, c.name)
			c.pattern, c.name = c.name, c.pattern
		}
	}
	for name, want := range map[string]string{
		"a.b.c": "a.b.c *.b.c *.c -", "*.b.c": "*.b.c *.c -", "*.c": "*.c -", "c": "c -", "": "-",
	} {
		var got []string
		for p := range coveringNames(name) {
			if p == "" {
				p = "-"
			}
			got = append(got, p)
		}
		testenv.True(t, strings.Join(got, " ") == want, "%q is covered by %v, not %s", name, got, want)
	}
}
