// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// problem is the reason and the message of a condition that is not met. The zero value is no problem.
type problem struct{ reason, message string }

func (p problem) ok() bool { return p.reason == "" }

func firstProblem(problems ...problem) problem {
	for _, p := range problems {
		if !p.ok() {
			return p
		}
	}
	return problem{}
}

// newCondition returns a condition that is true with the given reason, or false if there is a problem.
func newCondition[T ~string, R ~string](kind T, reason R, p problem, message string) metav1.Condition {
	if !p.ok() {
		return metav1.Condition{Type: string(kind), Status: metav1.ConditionFalse, Reason: p.reason, Message: p.message}
	}
	return metav1.Condition{Type: string(kind), Status: metav1.ConditionTrue, Reason: string(reason), Message: message}
}

// maxMessage is the greatest length that the API server accepts, in bytes.
const maxMessage = 32768

// mergeConditions returns the conditions of an object. Those in want replace those of the same type. Those of the types
// in drop are removed. Others stay unchanged. The time of a condition changes with its status.
func mergeConditions(have []metav1.Condition, generation int64, now time.Time, want []metav1.Condition, drop ...string) []metav1.Condition {
	var out []metav1.Condition
	for _, c := range have {
		if !slices.Contains(drop, c.Type) || slices.ContainsFunc(want, func(w metav1.Condition) bool { return w.Type == c.Type }) {
			out = append(out, c)
		}
	}
	for _, w := range want {
		w.ObservedGeneration = generation
		w.LastTransitionTime = metav1.NewTime(now)
		if len(w.Message) > maxMessage {
			w.Message = w.Message[:maxMessage]
		}
		at := slices.IndexFunc(out, func(c metav1.Condition) bool { return c.Type == w.Type })
		if at < 0 {
			out = append(out, w)
			continue
		}
		if out[at].Status == w.Status {
			w.LastTransitionTime = out[at].LastTransitionTime
		}
		out[at] = w
	}
	return out
}
