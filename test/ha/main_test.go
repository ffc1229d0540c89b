//go:build e2e || bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"io"
	"testing"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/test/fleet"
	"github.com/coracle-k8s/coracle/test/harness"
)

func TestMain(m *testing.M) {
	fleet.Process()
	klog.LogToStderr(false) // client-go's: what fails is reported by the caller
	klog.SetOutput(io.Discard)
	harness.Main(m)
}

// whole says whether the scenarios run at their whole length, which takes hours.
var whole = harness.Whole()
