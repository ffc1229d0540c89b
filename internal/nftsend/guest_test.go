// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/guest"
)

// TestInGuest has the tests against nft on an older kernel, Linux 6.1 where Debian has its source.
func TestInGuest(t *testing.T) {
	if !guest.Inside() {
		guest.Run(t, guest.WithNFTables(t, 15*time.Minute))
		return
	}
	t.Run("TestRefused", TestRefused)
	t.Run("TestSmallSocket", TestSmallSocket)
	t.Run("TestLikeNFT", TestLikeNFT)
	t.Run("TestStrange", TestStrange)
	t.Run("TestWhileOthersWrite", TestWhileOthersWrite)
}
