// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// tokenPattern matches what an authority may put into the path of a challenge: base64url (RFC 8555, section 8.3).
// Browsers interpret no such text as anything else.
var tokenPattern = regexp.MustCompile(`^[-_A-Za-z0-9]{1,256}$`)

// applyChallenges replaces the account that answers challenges for one host.
func applyChallenges(next *routingBuilder, key string, value json.RawMessage, present bool) error {
	host := strings.TrimPrefix(key, table.KindChallenges+"/")
	accounts := next.writableAccounts()
	delete(accounts, host)
	if !present {
		return nil
	}
	var from table.Challenges
	if err := json.Unmarshal(value, &from); err != nil {
		return fmt.Errorf("reading the account that answers challenges: %w", err)
	}
	if !tokenPattern.MatchString(from.Thumbprint) {
		return fmt.Errorf("%.100q is no thumbprint of an account's key", from.Thumbprint)
	}
	accounts[host] = from.Thumbprint
	return nil
}

// challenge answers an authority's request for the response to a challenge, and reports whether it did. A route of just
// this host with the path of challenges has precedence, since it leads to another solver, such as cert-manager's. A
// route of the default host or of a wildcard has not, since it may be another tenant's.
func (x *exchange) challenge(host string, r *route) bool {
	thumbprint := x.routing.accounts[host]
	if thumbprint == "" || x.listener.site != table.SiteIngress || r != nil && r.challenges &&
		x.routing.sites[x.listener.site].hasRoute(host, r) {
		return false
	}
	text, ok := strings.CutPrefix(x.path.match, table.ChallengesPath)
	if !ok || !tokenPattern.MatchString(text) || x.in.Method != http.MethodGet && x.in.Method != http.MethodHead {
		return false
	}
	x.answerText(http.StatusOK, text+"."+thumbprint)
	return true
}
