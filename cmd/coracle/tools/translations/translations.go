// SPDX-License-Identifier: Apache-2.0

// Package translations keeps kubectl's translations out of processes that are not kubectl. It is initialized before
// kubectl's commands, which translate their texts then: Go orders packages by their paths, and this one imports nothing
// that is initialized later. Without it, every start of coracle takes 13 ms and 4 MB for them.
package translations

import (
	"os"
	"path/filepath"
	"slices"

	"k8s.io/kubectl/pkg/util/i18n"
)

var _ = keepOut()

// keepOut fails only where translations have been loaded.
func keepOut() error {
	if isKubectl(os.Args) {
		return nil
	}
	return i18n.SetLoadTranslationsFunc(func() error { return nil })
}

// isKubectl says whether a process with these arguments is kubectl.
func isKubectl(args []string) bool {
	return slices.ContainsFunc(args[:min(len(args), 2)], func(a string) bool { return filepath.Base(a) == "kubectl" })
}
