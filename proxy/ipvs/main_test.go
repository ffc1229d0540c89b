// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/internal/guest"
	"github.com/coracle-k8s/coracle/internal/nstest"
)

func TestMain(m *testing.M) { os.Exit(guest.Main(m, nstest.Main)) }
