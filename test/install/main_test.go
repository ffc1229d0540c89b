//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
