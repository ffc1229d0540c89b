//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodepower

import (
	"os"
	"strconv"
	"testing"

	"github.com/coracle-k8s/coracle/test/powercut"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// cutsVar says how often the power is cut: make powercut NODES=… sets it.
const cutsVar = "CORACLE_NODE_CUTS"

// cuts is how often a test cuts the power, and at least that often.
func cuts(t *testing.T, least int) int {
	t.Helper()
	text := os.Getenv(cutsVar)
	if text == "" {
		return least
	}
	return max(least, testenv.Must(strconv.Atoi(text))(t))
}

// TestNodeSurvivesPowerCuts cuts the power soon after the first start, and then soon after other images have come. All
// pods have to run again by themselves.
func TestNodeSurvivesPowerCuts(t *testing.T) {
	t.Parallel() // it mostly waits
	n := newNode(t)
	n.boot()
	n.count()
	for i := range cuts(t, 2) {
		app, loss := n.deploy(i%2 == 1), powercut.SomeLoss(n.random)
		if i < 2 {
			loss = powercut.Loss{Unit: 512, Kept: 0.5}
		}
		if i < 2 || n.random.IntN(2) == 0 {
			n.ready(app)
			n.cut(n.random.IntN(20), loss)
		} else { // it is on its way
			n.cut(n.random.IntN(400), loss)
		}
		n.boot()
		if i >= 2 && n.random.IntN(4) == 0 { // in the midst of the start
			n.cut(n.random.IntN(300), powercut.SomeLoss(n.random))
			n.boot()
		}
		n.checkWell()
	}
}

// TestFirstStartSurvivesPowerCuts cuts the power somewhere in the first start, each time on an empty disk: among its
// first requests, or when its first pod runs.
func TestFirstStartSurvivesPowerCuts(t *testing.T) {
	times := cuts(t, 0)
	if times == 0 {
		t.Skip("each cut takes half a minute, and the first of TestNodeSurvivesPowerCuts is one of these: make powercut NODES=10 runs this")
	}
	n := newNode(t)
	for i := range times {
		if i > 0 {
			n.stop()
			n.newDisk()
		}
		n.boot()
		if n.random.IntN(2) == 0 {
			n.ready(n.deploy(false))
			n.cut(n.random.IntN(20), powercut.SomeLoss(n.random))
		} else {
			n.cut(n.random.IntN(1000), powercut.SomeLoss(n.random))
		}
		n.boot()
		n.deploy(n.random.IntN(2) == 0)
		n.checkWell()
	}
}

// TestNodeStartsOfflineAfterPowerCut cuts the power soon after a pull. The registry cannot be reached afterwards, and
// the image is complete on the disk: its pod has to run again.
func TestNodeStartsOfflineAfterPowerCut(t *testing.T) {
	times := cuts(t, 0)
	if times == 0 {
		t.Skip("each cut takes half a minute: make powercut NODES=10 runs this")
	}
	n := newNode(t)
	n.boot()
	for range times {
		n.registry.setAway(false)
		n.ready(n.deploy(true))
		n.cut(n.random.IntN(20), powercut.SomeLoss(n.random))
		n.registry.setAway(true)
		n.boot()
		n.checkWell()
	}
}
