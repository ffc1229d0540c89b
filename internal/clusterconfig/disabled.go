// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// The parts that a cluster can do without (--disable). Each is left to another program, if the operator installs one.
const (
	PartDNS           = "coredns"
	PartManifests     = "manifests" // the servers ignore their folders of manifests
	PartServiceLB     = "servicelb"
	PartNetworkPolicy = "network-policy"
	PartLocalStorage  = "local-storage" // volumes of the provisioner rancher.io/local-path
	PartMetrics       = "metrics-server"
	PartHelm          = "helm-controller"
	PartIngress       = "ingress"
	PartGateway       = "gateway"
	PartConsole       = "console"
	PartRuntimes      = "runtimes" // RuntimeClasses
	PartContent       = "content"  // machines get no layers of images from one another
)

// parts are all parts in the order of help and messages, each with its key in the JSON of Settings. Two have no key:
// without DNS, Settings have no address of it, and Balancer has a field.
var parts = []struct{ name, key string }{
	{PartDNS, ""}, {PartManifests, "noManifests"}, {PartServiceLB, ""}, {PartNetworkPolicy, "noNetworkPolicy"},
	{PartLocalStorage, "noLocalStorage"}, {PartMetrics, "noMetrics"}, {PartHelm, "noHelm"}, {PartIngress, "noIngress"},
	{PartGateway, "noGateway"}, {PartConsole, "noConsole"}, {PartRuntimes, "noRuntimes"},
	{PartContent, "noContent"},
}

// Parts returns the names of all parts.
func Parts() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// Disabled is a set of disabled parts, in the order of Parts.
type Disabled []string

// Has says whether a part is disabled.
func (d Disabled) Has(part string) bool { return slices.Contains(d, part) }

// settingsFields are Settings without methods, for encoding/json.
type settingsFields Settings

// MarshalJSON encodes each disabled part as a key of its own. Programs of all versions read this form.
func (s Settings) MarshalJSON() ([]byte, error) {
	data, err := json.Marshal(settingsFields(s))
	for _, p := range parts {
		if err == nil && p.key != "" && s.Disabled.Has(p.name) {
			data = fmt.Appendf(data[:len(data)-1], `,%q:true}`, p.key)
		}
	}
	return data, err
}

// UnmarshalJSON decodes what MarshalJSON of any version has encoded.
func (s *Settings) UnmarshalJSON(data []byte) error {
	var keys map[string]any
	if err := errors.Join(json.Unmarshal(data, (*settingsFields)(s)), json.Unmarshal(data, &keys)); err != nil {
		return err
	}
	s.Disabled = nil
	for _, p := range parts {
		if keys[p.key] == true || p.name == PartDNS && !s.DNS.IsValid() || p.name == PartServiceLB && s.Balancer.Disabled {
			s.Disabled = append(s.Disabled, p.name)
		}
	}
	return nil
}
