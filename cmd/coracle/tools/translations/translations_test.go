// SPDX-License-Identifier: Apache-2.0

package translations

import (
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestOnlyKubectlIsTranslated(t *testing.T) {
	for args, want := range map[string]bool{
		"": false, "/usr/local/bin/kubectl": true, "kubectl get pods": true, "coracle kubectl get pods": true,
		"/usr/local/bin/coracle server": false, "coracle helm kubectl": false, "coracle": false,
	} {
		testenv.Equal(t, isKubectl(strings.Fields(args)), want, "%s", args)
	}
}
