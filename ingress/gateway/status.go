// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// problem is why something is not as it should be: the reason and the message of a condition. The zero value is none.
type problem struct{ reason, message string }

func (p problem) ok() bool { return p.reason == "" }

// first is the first problem of several.
func first(problems ...problem) problem {
	for _, p := range problems {
		if !p.ok() {
			return p
		}
	}
	return problem{}
}

// condition is true with the reason given, or false for a problem.
func condition[T ~string, R ~string](kind T, reason R, p problem, message string) metav1.Condition {
	if !p.ok() {
		return metav1.Condition{Type: string(kind), Status: metav1.ConditionFalse, Reason: p.reason, Message: p.message}
	}
	return metav1.Condition{Type: string(kind), Status: metav1.ConditionTrue, Reason: string(reason), Message: message}
}

// maxMessage is what the API server takes.
const maxMessage = 32768

// mergeConditions gives the conditions of an object: those wanted in the place of those of the same type, without those
// of the types dropped, and others as they are. The time of a condition changes with its status.
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
