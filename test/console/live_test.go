//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestStateOfTheConnectionIsTrue: every page says since when nothing answers, also one without a list, and goes on by
// itself. A page whose user's token is revoked becomes the login page.
func TestStateOfTheConnectionIsTrue(t *testing.T) {
	s := harness.NewMachine(t).NewServer("--disable-agent", "--console-listen", ":"+consolePort)
	s.StartAPI()
	k := s.In(t)
	b := newBrowser(t, s.Machine.Site)
	create := b.login(s, newToken(k, "--role", "admin", "--namespace", "default", "--ttl", "1h"))
	create.list("cm default")
	create.keys("a")
	create.focused(".editor")
	own := b.admin(k)
	own.list("cm kube-system")
	own.shows("kube-root-ca.crt")
	own.shows("live")

	s.Kill()
	create.shows("connection lost since ")
	own.shows("no answer from the cluster since ")
	own.shows("What is shown is of then.")
	own.without(`Get "https://`)
	s.Start()
	create.shows("live")
	own.shows("live")
	own.without("What is shown is of then.")

	s.WaitAPI()
	k.Kubectl("-n", "coracle-console", "delete", "serviceaccounts", "--all")
	create.shows("does not accept this token") // within half a minute, and what the API remembers of the token
}
