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

// ServiceName returns the name of the Service of a Gateway, in the Gateway's namespace.
func ServiceName(gateway string) string {
	return shortenName("gateway-"+strings.ReplaceAll(gateway, ".", "-"), gateway, strings.Contains(gateway, "."))
}

// LabelValue returns the value of ServiceLabel: the Gateway's name. A name that is too long for a label is shortened
// and gets a hash.
func LabelValue(gateway string) string { return shortenName(gateway, gateway, false) }

// shortenName returns a text that fits into a label. A longer text is cut off and ends with a hash of the name that it
// comes from; with always, each does.
func shortenName(text, of string, always bool) string {
	if len(text) <= longestLabel && !always {
		return text
	}
	sum := sha256.Sum256([]byte(of))
	hash := hex.EncodeToString(sum[:])[:8]
	text = text[:min(len(text), longestLabel-len(hash)-1)]
	return strings.TrimRight(text, "-.") + "-" + hash
}

// Site returns the name of the site of a port of a Gateway.
func Site(namespace, gateway string, port int32) string {
	return table.GatewaySite(namespace, gateway, int(port))
}
