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

// token is what an authority may put into the path of a challenge: base64url (RFC 8555, section 8.3), which no browser
// takes for anything else.
var token = regexp.MustCompile(`^[-_A-Za-z0-9]{1,256}$`)

// applyChallenges replaces the account that answers challenges for one host.
func applyChallenges(next *edit, key string, value json.RawMessage, present bool) error {
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
	if !token.MatchString(from.Thumbprint) {
		return fmt.Errorf("%.100q is no thumbprint of an account's key", from.Thumbprint)
	}
	accounts[host] = from.Thumbprint
	return nil
}

// challenge answers an authority that asks whether the host is served here, and reports whether it did. A route of just
// this host that names the path of challenges goes first: it leads to another solver, such as cert-manager's. One of
// the default host or of a wildcard does not: it may be another tenant's.
func (x *exchange) challenge(host string, r *route) bool {
	thumbprint := x.routing.accounts[host]
	if thumbprint == "" || x.listener.site != table.SiteIngress || r != nil && r.challenges &&
		x.routing.sites[x.listener.site].has(host, r) {
		return false
	}
	text, ok := strings.CutPrefix(x.path.match, table.ChallengesPath)
	if !ok || !token.MatchString(text) || x.in.Method != http.MethodGet && x.in.Method != http.MethodHead {
		return false
	}
	x.answerText(http.StatusOK, text+"."+thumbprint)
	return true
}
