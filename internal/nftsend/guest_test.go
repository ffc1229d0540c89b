// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/uml"
)

// TestInGuest has the tests against nft on an older kernel, Linux 6.1 where Debian has its source.
func TestInGuest(t *testing.T) {
	if !uml.Inside() {
		uml.Run(t, uml.WithNFTables(t, 15*time.Minute))
		return
	}
	t.Run("TestRefused", TestRefused)
	t.Run("TestSmallSocket", TestSmallSocket)
	t.Run("TestLikeNFT", TestLikeNFT)
	t.Run("TestStrange", TestStrange)
	t.Run("TestWhileOthersWrite", TestWhileOthersWrite)
}
