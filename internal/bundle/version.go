// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"regexp"
	"slices"
	"strconv"
)

// versionForm is the form of a version: Kubernetes' own, and behind +coracle the number of the release, such as
// v1.37.0+coracle1. A build that is no release has no number.
var versionForm = regexp.MustCompile(`^v(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-dev)?(?:\+coracle(\d{1,9})?)?$`)

// parseVersion returns the numbers of a version. A missing one is 0.
func parseVersion(text string) (numbers []int, ok bool) {
	parts := versionForm.FindStringSubmatch(text)
	if parts == nil {
		return nil, false
	}
	for _, p := range parts[1:] {
		n, _ := strconv.Atoi(p) // "" is 0
		numbers = append(numbers, n)
	}
	return numbers, true
}

// olderVersion says whether a version is older than another one. One that is none is older than any.
func olderVersion(a, b string) bool {
	x, _ := parseVersion(a)
	y, _ := parseVersion(b)
	return slices.Compare(x, y) < 0
}
