// SPDX-License-Identifier: Apache-2.0

package localcreds_test

import (
	"net"
	"testing"

	"github.com/coracle-k8s/coracle/server/localcreds"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestProgramsAcceptAnyServersCertificate: where a server listens at one address alone, its machine's programs ask
// there and take any server's certificate.
func TestProgramsAcceptAnyServersCertificate(t *testing.T) {
	for address, want := range map[string]string{"": "", "0.0.0.0": "", "::": "", "127.0.0.1": "",
		"192.0.2.1": localcreds.EveryServer, "2001:db8::1": localcreds.EveryServer} {
		testenv.Equal(t, localcreds.New(localcreds.Options{BindAddress: net.ParseIP(address)}).ServerName(), want, "%q:", address)
	}
}
