// SPDX-License-Identifier: Apache-2.0

package loadbalancer_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

func TestReservedPortsAreParsed(t *testing.T) {
	for in, want := range map[string]string{
		"22": "[{TCP 22} {UDP 22} {SCTP 22}]", "22/TCP": "[{TCP 22}]", "22/tcp,53/UDP": "[{TCP 22} {UDP 53}]", "none": "[]", "": "error",
		"0": "error", "65536": "error", "22/": "error", "22/ICMP": "error", "none,22": "error", "ssh": "error", "-1": "error",
	} {
		ports, err := loadbalancer.ParsePorts(strings.Split(in, ","))
		if got := fmt.Sprint(ports); err == nil && got != want || (err != nil) != (want == "error") {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
}
