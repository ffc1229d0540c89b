// SPDX-License-Identifier: Apache-2.0

package artifact

import "strings"

// Owner returns the group version ("apps/v1", "v1") or group ("apps") that serves a path, or an empty string for a path
// of no API group.
func Owner(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) > 1:
		return parts[1]
	case parts[0] == "apis" && len(parts) > 2:
		return parts[1] + "/" + parts[2]
	case parts[0] == "apis" && len(parts) == 2:
		return parts[1]
	}
	return ""
}
