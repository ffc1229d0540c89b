// SPDX-License-Identifier: Apache-2.0

// Package convert converts slices.
package convert

// Slice returns the results of f for the elements of a slice, in order. It returns nil for an empty slice.
func Slice[S ~[]E, E, R any](in S, f func(E) R) []R {
	var out []R
	for _, e := range in {
		out = append(out, f(e))
	}
	return out
}

// Valid returns the results of f for the elements for which it returns no error, in order. It returns nil if there are
// none.
func Valid[S ~[]E, E, R any](in S, f func(E) (R, error)) []R {
	var out []R
	for _, e := range in {
		if r, err := f(e); err == nil {
			out = append(out, r)
		}
	}
	return out
}
