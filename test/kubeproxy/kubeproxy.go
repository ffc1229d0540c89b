// SPDX-License-Identifier: Apache-2.0

// Package kubeproxy configures upstream's kube-proxy, a program built from the module that go.mod names, as tests and
// benchmarks run it beside coracle's proxy: in nftables mode, with what else it has at its defaults. It is for those
// only.
package kubeproxy

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
)

// ProgramVar names the environment variable with the program's path.
const ProgramVar = "CORACLE_KUBE_PROXY"

// Configuration is what differs from one run to another.
type Configuration struct {
	// Kubeconfig is a file that says where the API server is. Without one it is at the URL in API, without TLS.
	Kubeconfig, API string
	// NodeName is the node's, which has its addresses from the API.
	NodeName string
	// ClusterCIDR holds all pods; with two families there is a comma between.
	ClusterCIDR string
	// Metrics is the address and port of its metrics; empty is upstream's default.
	Metrics string
}

// Write makes the files in a folder, and returns what goes behind --config. The node's limits of conntrack are not the
// program's to set: they are of the machine, and not to be had inside a namespace.
func (c Configuration) Write(dir string) (path string, err error) {
	own, path := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config")
	for file, text := range map[string]string{
		own: "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: \"" + c.API + "\"}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n",
		path: fmt.Sprintf("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nclientConnection: {kubeconfig: %q}\n"+
			"clusterCIDR: %q\nhostnameOverride: %s\nhealthzBindAddress: 127.0.0.1:10256\nmetricsBindAddress: %s\n"+
			"conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n", cmp.Or(c.Kubeconfig, own), c.ClusterCIDR, c.NodeName, cmp.Or(c.Metrics, "127.0.0.1:10249")),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("writing kube-proxy's configuration: %w", err)
		}
	}
	return path, nil
}
