// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// Nearest returns the candidate that a user who typed name most likely meant. It returns "" when none is near.
func Nearest(name string, candidates []string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	best, bestCost := "", len(name)/3+1
	for _, c := range candidates {
		if cost := editDistance(name, c); cost <= bestCost && cost < len(name) && (best == "" || cost < bestCost) {
			best, bestCost = c, cost
		}
	}
	if best != "" || len(name) < 4 {
		return best
	}
	// name may be a fragment, such as "kubeconfig-mode" or "server-arg". Take the shortest candidate that contains it.
	for _, c := range candidates {
		if strings.Contains(c, name) && (best == "" || len(c) < len(best)) {
			best = c
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of neighbouring letters that change a into b
// (optimal string alignment).
func editDistance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			replace := prev[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			cur[j] = min(replace, prev[j]+1, cur[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// didYouMean returns the second half of an error about an unknown name. It returns "" when no candidate is near.
func didYouMean(name, before string, candidates []string) string {
	if best := Nearest(name, candidates); best != "" {
		return "; did you mean " + before + best + "?"
	}
	return ""
}

func settingNames(settings []*Setting) []string {
	return convert.Slice(settings, func(s *Setting) string { return s.Name })
}
