//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// foreignMesh is a mesh of two nodes with a workload, on whose machines the programs that others have written run.
func foreignMesh(t *testing.T) *mesh {
	t.Helper()
	root := foreignRoot(t)
	m := newMesh(t, 2, "vxlan", "eth0", root)
	m.workload()
	for i := range m.nodes {
		m.addForeign(i, root)
	}
	m.allMeet()
	return m
}

// foreignRoot is the folder into which make foreign-test unpacks programs that others have written.
func foreignRoot(t *testing.T) string {
	t.Helper()
	root := os.Getenv("CORACLE_TEST_FOREIGN")
	if root == "" {
		testenv.Missing(t, testenv.Foreign, "make foreign-test unpacks them")
	}
	return root
}

// addForeign lays those programs over a machine's /usr and their configuration beside what its /etc has. Coracle finds
// none of them: its PATH has no sbin, and where it had, it takes what it carries.
func (m *mesh) addForeign(i int, root string) {
	m.Helper()
	const script = `cp -an "$1/etc/." /etc/
mkdir -p "$2/foreign/upper" "$2/foreign/work"
mount -t overlay overlay -o "lowerdir=$1/usr:/usr,upperdir=$2/foreign/upper,workdir=$2/foreign/work" /usr`
	m.run(i, "sh", "-ec", script, "foreign", root, m.nodes[i].Dir)
}

// foreign runs a script with the administrator's PATH.
func (m *mesh) foreign(i int, script string) string {
	m.Helper()
	return m.run(i, "sh", "-ec", "export PATH=/usr/sbin:/usr/bin\n"+script)
}
