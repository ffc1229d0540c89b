// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli/logging"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestNodeRegistersWithItsTaints(t *testing.T) {
	taints := []corev1.Taint{{Key: "dedicated", Value: "gpu", Effect: corev1.TaintEffectNoSchedule}}
	n := node{machine: config.Node{Kubelet: config.Kubelet{Taints: taints}}}
	o := n.options(embedded.Dir{}, &cli.Process{Log: &logging.Log{}})
	testenv.EqualSlices(t, o.Taints, taints, "the agent's taints are")
}
