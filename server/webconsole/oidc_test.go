// SPDX-License-Identifier: Apache-2.0

package webconsole

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/config"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestConsoleTakesTheIssuerOfTheAPIServer(t *testing.T) {
	const jwt = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: "https://one.example", audiences: [kubectl, console], discoveryURL: "https://inside.example/d"}
- issuer: {url: "https://two.example", audiences: [other]}
`
	dir := t.TempDir()
	file, broken := filepath.Join(dir, "authentication.yaml"), filepath.Join(dir, "broken.pem")
	for name, text := range map[string]string{file: jwt, broken: "no PEM"} {
		testenv.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	}
	flags := []string{"--oidc-issuer-url=https://a.example", "oidc-client-id=kubectl"}
	for name, c := range map[string]struct {
		args           []string
		own            config.ConsoleOIDC
		issuer, client string
		err            string
	}{
		"no OIDC":                     {},
		"the API server's own client": {args: flags, issuer: "https://a.example", client: "kubectl"},
		"another client": {args: flags, own: config.ConsoleOIDC{ClientID: "console"},
			issuer: "https://a.example", client: "console"},
		"the last argument counts": {args: append(flags, "oidc_issuer_url=https://b.example"), issuer: "https://b.example", client: "kubectl"},
		"a secret without OIDC":    {own: config.ConsoleOIDC{ClientSecret: "x"}, err: "does not authenticate users by OIDC"},
		"a file, and a client of it": {args: []string{"authentication-config=" + file},
			own: config.ConsoleOIDC{ClientID: "console"}, issuer: "https://one.example", client: "console"},
		"a file, and another client": {args: []string{"authentication-config=" + file},
			own: config.ConsoleOIDC{ClientID: "none"}, err: "does not authenticate users by OIDC"},
		"a file of two issuers":     {args: []string{"authentication-config=" + file}},
		"a file that is not there":  {args: []string{"authentication-config=" + file + "x"}, err: "no such file"},
		"authorities that are none": {args: append(flags, "oidc-ca-file="+broken), err: "no certificate in PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			o := &Options{APIServerArgs: c.args, OIDC: c.own}
			got, err := o.provider()
			switch {
			case c.err != "":
				testenv.False(t, err == nil || !strings.Contains(err.Error(), c.err), "%v, want %q", err, c.err)
			case err != nil:
				t.Error(err)
			case got == nil:
				testenv.True(t, c.issuer == "", "there is no issuer")
			case got.Issuer != c.issuer || got.ClientID != c.client:
				t.Errorf("%s of %s, want %s of %s", got.ClientID, got.Issuer, c.client, c.issuer)
			}
		})
	}
}
