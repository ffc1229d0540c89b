// SPDX-License-Identifier: Apache-2.0

package config

import "slices"

// ConsoleOIDC holds the settings by which users of a server's console log in by OIDC. The issuer is the API server's.
type ConsoleOIDC struct {
	ClientID     string // "" means the API server's
	ClientSecret string // "" for a public client
	Scopes       []string
}

func (r *reader) consoleOIDC() ConsoleOIDC {
	const secretFile = "console-oidc-client-secret-file"
	c := ConsoleOIDC{ClientID: r.text("console-oidc-client-id"), ClientSecret: r.secretFile(secretFile)}
	for _, it := range r.elements("console-oidc-scopes") {
		c.Scopes = append(c.Scopes, it.text)
	}
	if len(c.Scopes) > 0 && !slices.Contains(c.Scopes, "openid") {
		r.addProblem(r.src("console-oidc-scopes"), "lacks openid, without which there is no ID token")
	}
	for _, name := range []string{"console-oidc-client-id", secretFile, "console-oidc-scopes"} {
		if r.isSet(name) && r.text("console-listen") == "" {
			r.addProblem(r.src(name), "needs --console-listen")
		}
	}
	return c
}
