// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFirstOwnerKeepsItsPort: the first one keeps a port, also over the end of this process.
func TestFirstOwnerKeepsItsPort(t *testing.T) {
	nginx := map[int]string{80: "nginx, process 7"}
	type look struct {
		ports      []int
		programs   map[int]string
		annotation string
	}
	both := []int{80, 443}
	for _, c := range []struct {
		name, annotation string
		observations     []look
		problem          string
	}{
		{"no other program", "", []look{{both, nil, ""}}, ""},
		{"a program that was first", "", []look{{both, nginx, ",busy=80"}, {both, nginx, ",busy=80"}},
			"this node is no address of Ingresses and Gateways, since another program listens at TCP 80 (nginx, process 7) and holds that port: stop that program, or make it listen on another port"},
		{"and then ends", "", []look{{both, nginx, ",busy=80"}, {both, nil, ""}}, ""},
		{"a program that came later", "", []look{{both, nil, ""}, {both, nginx, ""}},
			"another program listens at TCP 80 (nginx, process 7), which the ingress opened first: connections from other machines do not reach that program"},
		{"in another run", "http=10054,https=10055", []look{{both, nginx, ""}},
			"another program listens at TCP 80 (nginx, process 7), which the ingress opened first: connections from other machines do not reach that program"},
		{"a program that was first, in another run", "http=10054,https=10055,busy=80", []look{{both, map[int]string{80: "", 443: ""}, ",busy=80"}},
			"this node is no address of Ingresses and Gateways, since another program listens at TCP 80 and holds that port: stop that program, or make it listen on another port"},
		{"a port that the Service has got", "http=10054", []look{{both, nil, ""}, {[]int{8080}, map[int]string{8080: ""}, ",busy=8080"}, {both, nginx, ",busy=80"}},
			"this node is no address of Ingresses and Gateways, since another program listens at TCP 80 (nginx, process 7) and holds that port: stop that program, or make it listen on another port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all portOwners
			for i, l := range c.observations {
				all.update(l.ports, l.programs, c.annotation)
				testenv.Equal(t, all.annotation(), l.annotation, "look %d: the annotation has", i)
			}
			testenv.Equal(t, all.problem(), c.problem, "the problem is")
		})
	}
}
