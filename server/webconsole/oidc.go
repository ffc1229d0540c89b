// SPDX-License-Identifier: Apache-2.0

package webconsole

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/console"
)

// provider returns the OIDC provider whose ID tokens the API server accepts, by its own arguments. It returns nil
// without one.
func (o *Options) provider() (*console.OIDC, error) {
	args := map[string]string{}
	for _, arg := range o.APIServerArgs { // the last one is used
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		args[strings.ReplaceAll(name, "_", "-")] = value
	}
	out := &console.OIDC{
		Issuer: args["oidc-issuer-url"], ClientID: args["oidc-client-id"],
		ClientSecret: o.OIDC.ClientSecret, Scopes: o.OIDC.Scopes,
	}
	var roots []byte
	var err error
	switch file := args["authentication-config"]; {
	case file != "":
		roots, err = fromAuthenticationConfig(out, file, o.OIDC.ClientID)
	case args["oidc-ca-file"] != "":
		roots, err = os.ReadFile(args["oidc-ca-file"])
	}
	if err != nil {
		return nil, fmt.Errorf("reading how the API server knows users by OIDC: %w", err)
	}
	if o.OIDC.ClientID != "" {
		out.ClientID = o.OIDC.ClientID
	}
	switch {
	case out.Issuer == "" && (o.OIDC.ClientID != "" || o.OIDC.ClientSecret != "" || len(o.OIDC.Scopes) > 0):
		return nil, errors.New("--console-oidc-…: the API server does not authenticate users by OIDC: " +
			"give it --kube-apiserver-arg=oidc-issuer-url=… and oidc-client-id=…, " +
			"or name a client of its authentication-config by --console-oidc-client-id")
	case out.Issuer == "" || out.ClientID == "":
		return nil, nil
	}
	if len(roots) > 0 {
		if out.Roots = x509.NewCertPool(); !out.Roots.AppendCertsFromPEM(roots) {
			return nil, errors.New("the authorities of the OIDC issuer hold no certificate in PEM")
		}
	}
	return out, nil
}

// fromAuthenticationConfig finds the issuer of a client in the API server's configuration file, and returns the CA
// certificates for the issuer in PEM. If client is empty, the file must have exactly one issuer with exactly one
// audience; that audience is the client.
func fromAuthenticationConfig(out *console.OIDC, file, client string) (roots []byte, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the authentication-config: %w", err)
	}
	var c apiserverv1.AuthenticationConfiguration
	if err := yaml.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("reading the authentication-config: %w", err)
	}
	for _, jwt := range c.JWT {
		issuer := jwt.Issuer
		only := client == "" && len(c.JWT) == 1 && len(issuer.Audiences) == 1
		if !only && !slices.Contains(issuer.Audiences, client) {
			continue
		}
		out.Issuer, out.ClientID = issuer.URL, issuer.Audiences[0]
		if issuer.DiscoveryURL != nil {
			out.DiscoveryURL = *issuer.DiscoveryURL
		}
		return []byte(issuer.CertificateAuthority), nil
	}
	return nil, nil
}
