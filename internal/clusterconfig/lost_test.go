// SPDX-License-Identifier: Apache-2.0

package clusterconfig_test

import (
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// TestAutonomyIsADuration: what users write, and what they may take for a duration.
func TestAutonomyIsADuration(t *testing.T) {
	for value, want := range map[string]time.Duration{"": 0, "24h": 24 * time.Hour, "1h30m": 90 * time.Minute, "9000h": 9000 * time.Hour} {
		if got, err := clusterconfig.ParseAutonomy(value); got != want || err != nil {
			t.Errorf("%q is %v, %v", value, got, err)
		}
	}
	for _, value := range []string{"2d", "24", "true", "0s", "-1h", " 24h", "99999999h"} {
		got, err := clusterconfig.ParseAutonomy(value)
		if got != 0 || err == nil || !strings.Contains(err.Error(), "such as 24h") {
			t.Errorf("%q is %v, %v", value, got, err)
		}
	}
}
