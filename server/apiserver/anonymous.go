// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"os"
	"path/filepath"

	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// healthOnlyAuthentication lets anonymous requests in on the health endpoints
// alone; upstream has no flag for that, only this file (KEP-4633).
const healthOnlyAuthentication = `# Written by the server at each start: changes are lost.
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// restrictAnonymous applies AnonymousHealthOnly unless ExtraArgs configured
// authentication in a way that this file would contradict.
func restrictAnonymous(s *kubeoptions.ServerRunOptions, o Options) error {
	authn := s.Authentication
	switch {
	case !o.AnonymousHealthOnly, authn.AuthenticationConfigFile != "", authn.Anonymous.FlagsSet:
		return nil
	case authn.OIDC.FlagsSet:
		// oidc-* flags and a configuration file exclude one another. Nobody
		// anonymous is the safe one of the two answers that are left.
		authn.Anonymous.Allow = false
		return nil
	}
	path := filepath.Join(o.ConfigDir, "authentication.yaml")
	if err := writeFile(path, []byte(healthOnlyAuthentication)); err != nil {
		return fmt.Errorf("writing the API server's authentication configuration: %w", err)
	}
	authn.AuthenticationConfigFile = path
	return nil
}

// writeFile replaces path in one step, and not at all when it is right already.
func writeFile(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(data); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
