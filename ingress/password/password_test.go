// SPDX-License-Identifier: Apache-2.0

package password_test

import (
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/coracle-k8s/coracle/ingress/password"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPasswordHashesAreVerified(t *testing.T) {
	own := testenv.Must(bcrypt.GenerateFromPassword([]byte("secret pass"), bcrypt.MinCost))(t)
	for _, hash := range []string{ // but for the first by openssl and Python
		string(own), "$2y" + string(own[3:]),
		"$apr1$abcdefgh$ZAdX7G.l3eDbgTYbm5ePE0", "{SHA}O1hAcUlX7zkBbV+/3rmbDfUlbNM=", "{SSHA}t0FqK/zuD7c+eUt/5FsWSzkVI81zYWx0",
	} {
		testenv.True(t, password.Verify(hash, "secret pass") && !password.Verify(hash, "secret pasS") && !password.Verify(hash, ""),
			"%s is not compared", hash)
	}
	testenv.True(t, password.Verify("$1$xy$sCW6WZJsSz7hVuvH0BCaf.", "pw"), "MD5-crypt is not compared")
	for _, hash := range []string{
		"", "x", "plain", "{PLAIN}x", "{SHA}", "{SHA}!!", "{SSHA}", "$1$", "$apr1$toolongsalt$ZAdX7G.l3eDbgTYbm5ePE0", "$6$salt$x", "$2y$", "$2",
		"$2y$31$LKGiBUkFHHrpJPPjKBnTAuGKTvMnDIHbRYJSYQWQOlGVLrHwzEpLS",
	} {
		testenv.True(t, password.Check(hash) != nil && !password.Verify(hash, "") && !password.Verify(hash, "x"),
			"%q is taken for a hash", hash)
	}
}
