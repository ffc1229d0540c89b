// SPDX-License-Identifier: Apache-2.0

package ipvs_test

import (
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { os.Exit(uml.Main(m, netns.Main)) }
