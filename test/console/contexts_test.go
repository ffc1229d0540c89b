//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp/kb"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestContextsAreSwitched: two users of a cluster are two contexts, and a third one's login program fails.
func TestContextsAreSwitched(t *testing.T) {
	k := newServer(t)
	raw := testenv.Must(clientcmd.LoadFromFile(k.Kubeconfig))(t)
	cluster := raw.Contexts[raw.CurrentContext].Cluster
	viewer := `a/../viewer "of" us`
	raw.AuthInfos["viewer"] = &api.AuthInfo{Token: newToken(k, "--role", "view")}
	raw.AuthInfos["stuck"] = &api.AuthInfo{Exec: &api.ExecConfig{
		Command: "/bin/false", APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: api.NeverExecInteractiveMode,
	}}
	raw.Contexts[viewer] = &api.Context{Cluster: cluster, AuthInfo: "viewer"}
	raw.Contexts["stuck"] = &api.Context{Cluster: cluster, AuthInfo: "stuck"}
	own := *k
	own.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	testenv.NoError(t, clientcmd.WriteToFile(*raw, own.Kubeconfig))
	testenv.NoError(t, os.Chmod(own.Kubeconfig, 0o600))
	b := newBrowser(t, k.Machine.Site)
	p := b.admin(&own)
	p.shows("ctx " + raw.CurrentContext)
	p.keys("K")
	p.focused("dialog input")
	p.keys("viewer", kb.Enter)
	p.shows("console-", "ctx "+viewer, "configmaps") // the kinds are there
	p.list("secrets default")
	p.shows("You may not list secrets in namespace default.")
	p.keys(":")
	p.focused(".command-bar input")
	p.keys("ctx stuck", kb.Enter)
	p.shows("the login program of context stuck", "Try again")
	eval[bool](p, `(document.querySelector("#other-context").focus(), true)`)
	p.keys(kb.Enter)
	p.focused("dialog input")
	p.keys(raw.CurrentContext, kb.Enter)
	p.shows("ctx "+raw.CurrentContext, "nodes ready")
}
