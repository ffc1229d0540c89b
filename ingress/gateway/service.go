// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// ServiceLabel is the label of the Services of Gateways. Its value is LabelValue of the Gateway's name.
const ServiceLabel = table.GatewayLabel

const longestLabel = 63

// ServiceName is the name of the Service of a Gateway, in the Gateway's namespace.
func ServiceName(gateway string) string {
	return shorten("gateway-"+strings.ReplaceAll(gateway, ".", "-"), gateway, strings.Contains(gateway, "."))
}

// LabelValue is the value of ServiceLabel: the Gateway's name, or a shortened form with a hash if it is too long for a
// label.
func LabelValue(gateway string) string { return shorten(gateway, gateway, false) }

// shorten keeps a text that fits into a label, and otherwise ends it with a hash of the name that it comes from.
func shorten(text, of string, always bool) string {
	if len(text) <= longestLabel && !always {
		return text
	}
	sum := sha256.Sum256([]byte(of))
	hash := hex.EncodeToString(sum[:])[:8]
	text = text[:min(len(text), longestLabel-len(hash)-1)]
	return strings.TrimRight(text, "-.") + "-" + hash
}

// Site is the site of a port of a Gateway.
func Site(namespace, gateway string, port int32) string {
	return table.GatewaySite(namespace, gateway, int(port))
}
