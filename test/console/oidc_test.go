//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/oidcprovider"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const ada = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: ada}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "oidc:ada"}]
`

// at waits until the page's address begins so.
func (p *page) at(prefix string) {
	p.T.Helper()
	harness.Eventually(p.T, time.Minute, "the page is at "+prefix, func() error {
		if now := eval[string](p, "location.href"); !strings.HasPrefix(now, prefix) {
			return fmt.Errorf("it is at %s:\n%s", now, p.text())
		}
		return nil
	})
}

// TestOIDCSessionIsRenewed: a user logs in at a provider, works on while tokens are renewed, and logs out. The API
// server verifies the provider's tokens.
func TestOIDCSessionIsRenewed(t *testing.T) {
	m := harness.NewMachine(t)
	address := net.JoinHostPort(m.IP, "9443")
	l := testenv.Must(m.Listen(address))(t)
	t.Cleanup(func() { _ = l.Close() })
	provider := oidcprovider.New("https://" + address)
	provider.ClientSecret = "hidden"
	authority := testenv.Must(provider.ServeTLS(l))(t)
	ca, secret := filepath.Join(m.Dir, "provider.pem"), filepath.Join(m.Dir, "secret")
	for name, text := range map[string][]byte{ca: authority, secret: []byte("hidden\n")} {
		testenv.NoError(t, os.WriteFile(name, text, 0o600))
	}
	s := m.NewServer("--console-listen", ":"+consolePort, "--console-oidc-client-secret-file", secret,
		"--kube-apiserver-arg=oidc-issuer-url="+provider.Issuer, "--kube-apiserver-arg=oidc-client-id=console",
		"--kube-apiserver-arg=oidc-ca-file="+ca, "--kube-apiserver-arg=oidc-username-claim=sub", "--kube-apiserver-arg=oidc-username-prefix=oidc:")
	s.AddBoxImage()
	s.StartNode()
	k := s.In(t)
	k.Await(harness.Soon, "serviceaccount/default", "{.metadata.name}", "default")
	k.Apply(ada)
	addWorkload(k)

	home := "https://" + net.JoinHostPort(m.IP, consolePort) + "/"
	p := newBrowser(t, m.Site).open(home + "#/list/pods")

	// This browser's clock is wrong: it has the second day of 1970.
	p.do("setting the browser's clock", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		wrong := fmt.Sprintf("{ const now = Date.now; Date.now = () => now() - %d; }", time.Now().Add(-24*time.Hour).UnixMilli())
		_, err := cdp.Call(ctx, target, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: wrong})
		return err
	}))

	// A code of another browser's login is not taken, and leaves the address.
	p.shows("Log in with " + address)
	p.shot("oidc-login")
	p.do("coming with a foreign login", chromedp.Navigate(home+"?code=stolen&state=foreign"))
	p.shows("was not begun in this tab")
	if now := eval[string](p, "location.href"); strings.Contains(now, "stolen") {
		t.Errorf("the code is still in the address: %s", now)
	}

	// The user says no, then yes.
	p.keys(kb.Enter) // the button has the focus
	p.at(provider.Issuer)
	p.do("saying no", chromedp.Click("#deny"))
	p.shows("the user said no", "Log in with")
	provider.Change(func(o *oidcprovider.Provider) { o.Lifetime = 20 * time.Second })
	p.keys(kb.Enter)
	p.at(provider.Issuer)
	p.do("logging in at the provider", chromedp.Click("#login"))
	p.at(home)
	p.shows("oidc:ada")
	testenv.Equal(t, eval[string](p, "String(new Date(Date.now()).getUTCFullYear())"), "1970", "the browser's clock has")
	if now := eval[string](p, "location.href"); strings.Contains(now, "code=") {
		t.Errorf("the code is still in the address: %s", now)
	}

	// Tokens of 20 s are renewed in time, and the list goes on.
	p.shows("broken", "ErrImageNeverPull") // the kinds are loaded
	p.keys(":", "po default", kb.Enter)
	p.shows("talker-", "broken")
	first := eval[string](p, `sessionStorage.getItem("coracle.token")`)
	harness.Eventually(t, 2*time.Minute, "the token was renewed twice", func() error {
		if n := provider.Renewals(); n < 2 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	testenv.True(t, eval[string](p, `sessionStorage.getItem("coracle.token")`) != first, "the tab has its first token")
	k.Kubectl("delete", "pod", "broken", "--wait=false")
	p.without("broken")
	p.shows("talker-", "oidc:ada")
	p.shot("oidc-renewed")

	// The provider renews no more: the session ends, once, with a button.
	provider.Change(func(o *oidcprovider.Provider) { o.User = "eve" })
	p.shows("another user", "Log in with")
	p.shot("oidc-ended")
	if kept := eval[string](p, `[...Array(sessionStorage.length).keys()].map((i) => sessionStorage.key(i)).join()`); strings.Contains(kept, "token") || strings.Contains(kept, "renewal") {
		t.Errorf("the tab keeps %s", kept)
	}

	// The API refuses what the provider gives: that is said once, and nothing goes in circles.
	provider.Change(func(o *oidcprovider.Provider) {
		o.User, o.Lifetime, o.Claims = "ada", time.Hour, map[string]any{"aud": "other"}
	})
	p.keys(kb.Enter)
	p.at(provider.Issuer)
	p.do("logging in at the provider", chromedp.Click("#login"))
	p.at(home)
	p.shows("let you in, but the cluster did not accept its token", "Log in with")

	// Logging out forgets everything, and comes back from the provider.
	provider.Change(func(o *oidcprovider.Provider) { o.Claims = nil })
	p.keys(kb.Enter)
	p.at(provider.Issuer)
	p.do("logging in at the provider", chromedp.Click("#login"))
	p.at(home)
	p.shows("oidc:ada")
	p.do("logging out", chromedp.Click(`header button:last-child`))
	p.shows("Log in with")
	p.at(home)
	testenv.Equal(t, eval[string](p, `String(sessionStorage.getItem("coracle.token")) + sessionStorage.getItem("coracle.renewal")`), "nullnull", "the tab keeps:")
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, said := range p.violations {
		testenv.False(t, strings.Contains(said, "Content Security Policy"), "the browser says: %s", said)
	}
}
