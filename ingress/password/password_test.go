// SPDX-License-Identifier: Apache-2.0

package password

import (
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPasswordHashesAreVerified(t *testing.T) {
	own := testenv.Must(bcrypt.GenerateFromPassword([]byte("secret pass"), bcrypt.MinCost))(t)
	for _, hash := range []string{ // but for the first by openssl and Python
		string(own), "$2y" + string(own[3:]),
		"$apr1$abcdefgh$ZAdX7G.l3eDbgTYbm5ePE0", "{SHA}O1hAcUlX7zkBbV+/3rmbDfUlbNM=", "{SSHA}t0FqK/zuD7c+eUt/5FsWSzkVI81zYWx0",
	} {
		if !Verify(hash, "secret pass") || Verify(hash, "secret pasS") || Verify(hash, "") {
			t.Errorf("%s is not compared", hash)
		}
	}
	testenv.True(t, Verify("$1$xy$sCW6WZJsSz7hVuvH0BCaf.", "pw"), "MD5-crypt is not compared")
	for _, hash := range []string{
		"", "x", "plain", "{PLAIN}x", "{SHA}", "{SHA}!!", "{SSHA}", "$1$", "$apr1$toolongsalt$ZAdX7G.l3eDbgTYbm5ePE0", "$6$salt$x", "$2y$", "$2",
		"$2y$31$LKGiBUkFHHrpJPPjKBnTAuGKTvMnDIHbRYJSYQWQOlGVLrHwzEpLS",
	} {
		if Check(hash) == nil || Verify(hash, "") || Verify(hash, "x") {
			t.Errorf("%q is taken for a hash", hash)
		}
	}
}
