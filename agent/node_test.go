// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestReportAcrossAClockStep: what the kubelet reported since the start counts, also when the clock was set between the
// two.
func TestReportAcrossAClockStep(t *testing.T) {
	noon := time.Date(2026, 11, 23, 12, 0, 0, 700_000_000, time.UTC)
	for _, c := range []struct {
		what     string
		step     time.Duration // of the clock, five seconds after the start
		reported time.Duration // after the start
		ready    bool
	}{
		{"no step", 0, 0, true},
		{"no step, and a report of an earlier run", 0, -2 * time.Second, false},
		{"set back before the report", -time.Minute, 10 * time.Second, true},
		{"set back after the report", -time.Minute, 3 * time.Second, true},
		{"set forward before the report", time.Hour, 10 * time.Second, true},
		{"set forward after the report", time.Hour, 3 * time.Second, true},
		{"set forward, and a report of an earlier run", time.Hour, -2 * time.Second, false},
	} {
		clock := func(after time.Duration) time.Time {
			at := noon.Add(after)
			if after > 5*time.Second {
				at = at.Add(c.step)
			}
			return at
		}
		node := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(clock(c.reported).Truncate(time.Second))}}}}
		const interval = 20 * time.Second
		if ready, why := readyCondition(node, earliestStart(noon, clock(interval), interval)); ready != c.ready {
			t.Errorf("%s: ready %t (%s), want %t", c.what, ready, why, c.ready)
		}
	}
}
