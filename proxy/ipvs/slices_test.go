// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/coracle-k8s/coracle/test/services"
)

func sliceAt(i int, ips ...string) *discoveryv1.EndpointSlice {
	s := services.New(fmt.Sprint("s", i), nil, corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP})
	return services.Slice(s, "n2", 8080, ips...)
}
