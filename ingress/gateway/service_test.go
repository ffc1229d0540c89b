// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
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
	if got := ServiceName("web"); got != "gateway-web" {
		t.Errorf("the Service of web is %s", got)
	}
}

func TestPortsAnnotation(t *testing.T) {
	for value, want := range map[string]map[int32]uint16{
		"":                                   {},
		"80=10060,443=10061":                 {80: 10060, 443: 10061},
		"80=10059,443=10316,81=10060,0=1":    {81: 10060},
		"80=10060,80=10061,x=10062,81=,,82":  {80: 10060},
		"70000=10060, 80=10061,-1=10062":     {},
		"443=10315,80=10060, 81 = 10061,9=9": {443: 10315, 80: 10060},
	} {
		if got := ParsePorts(value); !maps.Equal(got, want) {
			t.Errorf("%q is read as %v, not %v", value, got, want)
		}
		if again := ParsePorts(FormatPorts(want)); !maps.Equal(again, want) {
			t.Errorf("%v is written as %q", want, FormatPorts(want))
		}
	}
}

func TestOldestServiceHasANodePort(t *testing.T) {
	service := func(name, ports string, age time.Duration) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{
			Namespace: "a", Name: name, CreationTimestamp: metav1.NewTime(born.Add(-age)), Annotations: map[string]string{PortsAnnotation: ports},
		}}
	}
	got := NodePorts([]*corev1.Service{service("young", "80=10060,81=10061", 1), service("old", "443=10060,444=10060", time.Hour), service("same-age", "1=10061", 1)})
	want := map[ServicePort]uint16{{"a", "old", 443}: 10060, {"a", "same-age", 1}: 10061}
	if !maps.Equal(got, want) {
		t.Errorf("the ports are %v, not %v", got, want)
	}
}

func TestHostNames(t *testing.T) {
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
			if got != c.both {
				t.Errorf("%q and %q have the hosts %q, not %q", c.pattern, c.name, got, c.both)
			}
			c.pattern, c.name = c.name, c.pattern
		}
	}
	for name, want := range map[string]string{
		"a.b.c": "a.b.c *.b.c *.c -", "*.b.c": "*.b.c *.c -", "*.c": "*.c -", "c": "c -", "": "-",
	} {
		var got []string
		for p := range patterns(name) {
			if p == "" {
				p = "-"
			}
			got = append(got, p)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q is covered by %v, not %s", name, got, want)
		}
	}
}
