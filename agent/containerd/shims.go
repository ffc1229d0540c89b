// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"strings"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// failedShims counts the shims that containerd cannot load when it starts. containerd ends their containers and logs
// that, and nothing else says so (core/runtime/v2/shim_load.go, loadShims).
type failedShims struct{ count atomic.Int32 }

// Levels implements logrus.Hook.
func (f *failedShims) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

// Fire implements logrus.Hook.
func (f *failedShims) Fire(e *logrus.Entry) error {
	if strings.HasPrefix(e.Message, "failed to load shim ") {
		f.count.Add(1)
	}
	return nil
}
