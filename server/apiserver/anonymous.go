// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// restrictAnonymous lets anonymous requests reach only the health endpoints. Upstream has no flag for that, only a
// configuration file (KEP-4633). The file excludes the oidc-* flags, so their values are written into it.
// restrictAnonymous does nothing when APIServerArgs name an authentication file of their own or contain a flag for
// anonymous requests.
func restrictAnonymous(s *kubeoptions.ServerRunOptions, o Options) error {
	authn := s.Authentication
	if !o.AnonymousHealthOnly || authn.AuthenticationConfigFile != "" || authn.Anonymous.FlagsSet {
		return nil
	}
	config := &apiserver.AuthenticationConfiguration{}
	if authn.OIDC.FlagsSet {
		fromFlags := *authn
		fromFlags.ServiceAccounts, fromFlags.ClientCert, fromFlags.RequestHeader, fromFlags.Anonymous = nil, nil, nil, nil
		parsed, err := fromFlags.ToAuthenticationConfig()
		if err != nil {
			return fmt.Errorf("reading the oidc-* arguments: %w", err)
		}
		config.JWT = parsed.AuthenticationConfig.JWT
		authn.OIDC = nil
	}
	config.Anonymous = &apiserver.AnonymousAuthConfig{Enabled: true, Conditions: []apiserver.AnonymousAuthCondition{
		{Path: "/livez"}, {Path: "/readyz"}, {Path: "/healthz"},
	}}
	data, err := encodeAuthentication(config)
	if err != nil {
		return fmt.Errorf("writing the API server's authentication configuration: %w", err)
	}
	path := filepath.Join(o.ConfigDir, "authentication.yaml")
	if _, err := atomicfile.WriteIfDifferent(path, data, 0o600); err != nil {
		return fmt.Errorf("writing the API server's authentication configuration: %w", err)
	}
	authn.AuthenticationConfigFile = path
	return nil
}

// encodeAuthentication encodes the internal type as YAML of its published version.
func encodeAuthentication(config *apiserver.AuthenticationConfiguration) ([]byte, error) {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	var out apiserverv1.AuthenticationConfiguration
	if err := scheme.Convert(config, &out, nil); err != nil {
		return nil, err
	}
	out.TypeMeta = metav1.TypeMeta{APIVersion: apiserverv1.SchemeGroupVersion.String(), Kind: "AuthenticationConfiguration"}
	data, err := yaml.Marshal(out)
	if err != nil {
		return nil, err
	}
	return append([]byte("# Written by the server at each start: changes are lost.\n"), data...), nil
}
