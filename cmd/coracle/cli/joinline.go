// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
)

// printJoinLines prints the commands to paste on the joining machine.
func printJoinLines(w io.Writer, t *config.Tool, role, token string) {
	at, tok := shellQuote(ownURL(t)), shellQuote(token)
	install := "CORACLE_URL=" + at + " CORACLE_TOKEN=" + tok + " ./install.sh"
	if role == "server" {
		install = "INSTALL_CORACLE_EXEC=server " + install
	}
	fmt.Fprintf(w, "\nOn the machine that is to join as %s:\n\n  sudo coracle %s --server %s --token %s\n\nor, to install it there as a "+
		"service, from a clone or with a release beside the script:\n\n  sudo %s\n",
		map[string]string{"agent": "a node", "server": "a server"}[role], role, at, tok, install)
}

// ownURL returns the URL by which other machines reach the cluster: the virtual address or, without one, the address of
// this machine's API server. That is the first address in its certificate that is not a loopback address: the
// advertised address.
func ownURL(t *config.Tool) string {
	host, port := "ADDRESS-OF-THIS-MACHINE", "6443"
	if vips, _, err := clusterconfig.ReadVIPs(t.Paths.ServerDir); err == nil && len(vips) > 0 {
		host = vips[0].String()
	} else if data, err := os.ReadFile(filepath.Join(t.Paths.TLSDir, "serving-kube-apiserver.pem")); err == nil {
		if b, _ := pem.Decode(data); b != nil {
			if c, err := x509.ParseCertificate(b.Bytes); err == nil {
				for _, ip := range c.IPAddresses {
					if !ip.IsLoopback() {
						host = ip.String()
						break
					}
				}
			}
		}
	}
	if c, err := clientcmd.LoadFromFile(t.Paths.AdminKubeconfig); err == nil && c.Contexts[c.CurrentContext] != nil {
		if cluster := c.Clusters[c.Contexts[c.CurrentContext].Cluster]; cluster != nil {
			if u, err := url.Parse(cluster.Server); err == nil && u.Port() != "" {
				port = u.Port()
			}
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

// shellQuote quotes a text as one word for a POSIX shell. It returns a text that is one word already unchanged.
func shellQuote(text string) string {
	special := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:@%+,=", r))
	}
	if text != "" && !strings.ContainsFunc(text, special) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
