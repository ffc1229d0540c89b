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

func TestCredentialsArePublishedWithTheirModes(t *testing.T) {
	f := nodecreds.In(filepath.Join(t.TempDir(), "cred"))
	c := nodecreds.Cluster{URL: "https://192.0.2.1:6443", ServerName: "127.0.0.1", ServerCA: []byte("server"), ClientCA: []byte("client")}
	for range 2 { // the second time there is nothing to do
		testenv.NoError(t, f.Publish(c))
	}
	for path, want := range map[string]string{f.ServerCAFile: "server", f.ClientCAFile: "client"} {
		testenv.Equal(t, string(testenv.Must(os.ReadFile(path))(t)), want, "%s:", path)
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, fi.Mode(), err)
		}
	}
	for path, pair := range map[string]string{f.KubeletKubeconfig: f.KubeletPair, f.NetworkKubeconfig: f.NetworkPair} {
		k := testenv.Must(clientcmd.LoadFromFile(path))(t)
		user, cluster := k.AuthInfos["default"], k.Clusters["default"]
		if user.ClientCertificate != pair || user.ClientKey != pair || cluster.Server != c.URL || cluster.TLSServerName != c.ServerName || cluster.CertificateAuthority != f.ServerCAFile {
			t.Errorf("%s: %+v, %+v", path, user, cluster)
		}
	}
	testenv.Fails(t, (nodecreds.Files{}).Publish(c), "published nowhere")
}
