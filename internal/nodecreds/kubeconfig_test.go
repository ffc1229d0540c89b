// SPDX-License-Identifier: Apache-2.0

package nodecreds_test

import (
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestKubeconfigIsRewrittenOnlyWhenNeeded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc", "coracle.yaml")
	e := nodecreds.Embedded{Server: "https://192.0.2.1:6443", ServerName: "127.0.0.1", CA: []byte("ca"), Cert: []byte("cert"),
		Key: []byte("key"), Path: path}
	testenv.NoError(t, e.Write())
	c := testenv.Must(clientcmd.BuildConfigFromFlags("", path))(t)
	if c.Host != e.Server || c.ServerName != e.ServerName || string(c.CAData) != "ca" || string(c.CertData) != "cert" || string(c.KeyData) != "key" {
		t.Errorf("%+v", c)
	}
	before, err := os.Stat(path)
	testenv.Require(t, err == nil && before.Mode().Perm() == 0o600, "%v, %v", before.Mode(), err)
	testenv.NoError(t, e.Write())
	if same, err := os.Stat(path); err != nil || !os.SameFile(before, same) {
		t.Errorf("rewritten without need, %v", err)
	}
	e.Mode = 0o644
	testenv.NoError(t, e.Write())
	if after, err := os.Stat(path); err != nil || after.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", after.Mode(), err)
	}
}

func TestKubeconfigNamesItsFiles(t *testing.T) {
	dir := t.TempDir()
	b := nodecreds.ByFile{Server: "https://192.0.2.1:6443", ServerName: "127.0.0.1", CAFile: filepath.Join(dir, "ca"),
		PairFile: filepath.Join(dir, "pair"),
		Path:     filepath.Join(dir, "k")}
	for _, f := range []string{b.CAFile, b.PairFile} {
		testenv.NoError(t, os.WriteFile(f, nil, 0o600))
	}
	testenv.NoError(t, b.Write())
	c := testenv.Must(clientcmd.BuildConfigFromFlags("", b.Path))(t)
	if c.Host != b.Server || c.ServerName != b.ServerName || c.CAFile != b.CAFile || c.CertFile != b.PairFile || c.KeyFile != b.PairFile || len(c.CertData) != 0 {
		t.Errorf("%+v", c)
	}
}
