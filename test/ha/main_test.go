//go:build e2e || bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// whole says whether the scenarios run at their whole length, which takes hours.
var whole = os.Getenv("CORACLE_HA_WHOLE") != ""
