// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/acme"

	"github.com/coracle-k8s/coracle/internal/truncate"
)

// Types of problems (RFC 8555, section 6.7).
const (
	urn         = "urn:ietf:params:acme:error:"
	malformed   = urn + "malformed"
	noAccount   = urn + "accountDoesNotExist"
	rateLimited = urn + "rateLimited"
)

// hintByProblem has, by the type of an error that an ACME server returns, what the user can do about it.
var hintByProblem = map[string]string{
	"dns":        "have the DNS name lead to the addresses of the Ingress (kubectl get ingress)",
	"connection": "have the DNS name lead to the addresses of the Ingress, and let port 80 in there from the whole internet",
	"unauthorized": "something else than this cluster answers at the DNS name: have it lead to the addresses of the Ingress " +
		"alone, IPv6 ones too",
	"incorrectResponse": "something else than this cluster answers at the DNS name: have it lead to the addresses of the Ingress " +
		"alone, IPv6 ones too",
	"caa":                "the domain's CAA records forbid this authority: change them, or name another one by --ingress-acme-server",
	"rejectedIdentifier": "the authority does not issue for this name: take it out of spec.tls",
	"unsupportedContact": "correct --ingress-acme-email on all servers",
	"invalidContact":     "correct --ingress-acme-email on all servers",
	"externalAccountRequired": "this authority wants accounts that were made on its site, which coracle cannot use: name another one by " +
		"--ingress-acme-server",
	"userActionRequired": "the authority's terms have changed: agree to them at the URL of the message",
}

// failure is the result of classifying a failed attempt.
type failure struct {
	// text says what failed and what to do.
	text string
	// refused says that the authority has refused the order. A refusal counts against the authority's limits.
	refused bool
	// wait is the least time to another attempt that the authority demands. An attempt before notBefore would fail.
	wait      time.Duration
	notBefore time.Time
	// pauseOrders is the time for which other orders are not begun either.
	pauseOrders time.Duration
}

// maxPause limits the time for which a limit that one order exceeded keeps others from being begun. The limit may be
// one of that order's domain only.
const maxPause = 10 * time.Minute

// maxWait limits the wait that an authority can demand. The longest known limit is a week.
const maxWait = 7 * 24 * time.Hour

func classifyError(err error) failure {
	v := failure{text: oneLine(err.Error())}
	if a := (*accountError)(nil); errors.As(err, &a) {
		v = classifyError(a.cause)
		v.text = "there is no account with the authority: " + v.text
		v.refused, v.notBefore, v.pauseOrders = false, a.nextAttempt, 0 // the account was refused, and not the order
		return v
	}
	var (
		refused  *refusedError
		problem  *acme.Error
		proof    *acme.AuthorizationError
		order    *acme.OrderError
		invalid  x509.CertificateInvalidError
		unknown  x509.UnknownAuthorityError
		clockErr *clockError
	)
	switch {
	case errors.As(err, &clockErr):
	case errors.As(err, &refused):
		v.refused = true
	case errors.As(err, &proof):
		v.refused = true
		for _, one := range proof.Errors {
			if errors.As(one, &problem) {
				v.text = fmt.Sprintf("the authority could not verify %s: %s", oneLine(proof.Identifier), problemText(problem))
			}
		}
	case errors.As(err, &order):
		v.refused = true
		if order.Problem != nil {
			v.text = problemText(order.Problem)
		}
	case errors.As(err, &problem):
		v.text = problemText(problem)
		v.refused = problem.StatusCode >= 400 && problem.StatusCode < 500
		if problem.ProblemType == noAccount { // another account will be registered
			v.refused = false
		}
		if wait, limited := acme.RateLimit(problem); limited || problem.StatusCode == http.StatusTooManyRequests {
			v.wait = min(wait, maxWait)
			v.pauseOrders = max(time.Minute, min(wait, maxPause))
		}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		v.text += ". Where this server's clock is wrong, set it (NTP)"
	case errors.As(err, &unknown):
		v.text += ". An authority of your own is named by --ingress-acme-ca-file"
	case errors.Is(err, context.DeadlineExceeded):
		v.text = "the authority did not answer in time"
	}
	return v
}

func problemText(e *acme.Error) string {
	text := oneLine(e.Detail)
	for _, s := range e.Subproblems {
		text += "; " + oneLine(s.Detail)
		if s.Identifier != nil {
			text += " (" + s.Identifier.Value + ")"
		}
	}
	text = oneLine(text)
	kind := strings.TrimPrefix(e.ProblemType, urn)
	switch hint := hintByProblem[kind]; {
	case e.ProblemType == rateLimited || e.StatusCode == http.StatusTooManyRequests:
		text = "the authority's limits are reached: " + text
	case kind == "unauthorized" && e.StatusCode == http.StatusForbidden && strings.Contains(strings.ToLower(e.Detail), "account"):
		text += ". Delete the Secret kube-system/ingress-acme to begin with another account"
	case hint != "":
		text += ". What to do: " + hint
	}
	return text
}

// oneLine returns text of the authority, which may contain responses of other servers, as one line of limited length.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	return strings.TrimSuffix(truncate.Text(text, 500), ".")
}

// longBackoff returns the wait after a refusal. It permits at most three attempts in an hour; Let's Encrypt permits
// five failures of a host.
func longBackoff(failures int) time.Duration {
	const first, longest = 15 * time.Minute, 8 * time.Hour
	return doubledWait(first, longest, failures)
}

// shortBackoff returns the wait after a failure that does not count against the authority's limits.
func shortBackoff(failures int) time.Duration {
	const first, longest = 5 * time.Second, 15 * time.Minute
	return doubledWait(first, longest, failures)
}

func doubledWait(first, longest time.Duration, failures int) time.Duration {
	out := first
	for range failures - 1 {
		if out *= 2; out >= longest {
			return longest
		}
	}
	return out
}
