// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/coracle-k8s/coracle/test/testca"

// newPKI makes one certificate for all servers on this machine, of both stores.
func newPKI(dir string) (testca.Files, error) {
	ca, err := testca.New(dir)
	if err != nil {
		return testca.Files{}, err
	}
	return ca.Issue("peer", "localhost", "127.0.0.1")
}
