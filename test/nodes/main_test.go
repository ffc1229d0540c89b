//go:build e2e

// SPDX-License-Identifier: Apache-2.0

// Package nodes has the scenarios of what several nodes do among themselves: their network, load balancer addresses,
// changed addresses, deaths, and versions. They stand apart from test/e2e, which has some of that too, so that two
// packages of scenarios have something to do from the beginning to the end.
package nodes

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// whole has scenarios go their whole length, which takes many minutes.
var whole = harness.Whole()
