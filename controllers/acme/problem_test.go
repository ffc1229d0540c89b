// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFailuresSayWhatToDo: each failure says what to do, and only what the authority judged counts as refused.
func TestFailuresSayWhatToDo(t *testing.T) {
	ca := func(status int, kind, detail string) *acme.Error {
		return &acme.Error{StatusCode: status, ProblemType: urn + kind, Detail: detail, Header: http.Header{"Retry-After": {"3600"}}}
	}
	proof := func(e error) error { return &acme.AuthorizationError{Identifier: "a.example", Errors: []error{e}} }
	for _, c := range []struct {
		name     string
		err      error
		refused  bool
		wait     time.Duration
		messages []string
	}{
		{"no DNS", proof(ca(400, "dns", "NXDOMAIN looking up A for a.example")), true, 0, []string{"could not verify a.example: NXDOMAIN", "have the DNS name lead to"}},
		{"no connection", proof(ca(400, "connection", "Timeout during connect (likely firewall problem)")), true, 0, []string{"let port 80 in"}},
		{"another server", proof(ca(403, "unauthorized", "Invalid response from http://a.example: 404")), true, 0, []string{"something else than this cluster answers"}},
		{"CAA", &acme.OrderError{OrderURL: "u", Status: "invalid", Problem: ca(403, "caa", "CAA record for a.example prevents issuance")}, true, 0, []string{"CAA records forbid this authority"}},
		{"an order without a problem", &acme.OrderError{OrderURL: "https://ca.example/1", Status: "invalid"}, true, 0, []string{"https://ca.example/1"}},
		{"a name", fmt.Errorf("new order: %w", ca(400, "rejectedIdentifier", "Cannot issue for \"x.local\"")), true, 0, []string{"take it out of spec.tls"}},
		{"limits", ca(429, "rateLimited", "too many certificates already issued"), true, time.Hour, []string{"the authority's limits are reached: too many"}},
		{"a deactivated account", ca(403, "unauthorized", "Account is not valid, has status \"deactivated\""), true, 0, []string{"Delete the Secret kube-system/ingress-acme"}},
		{"an unknown account", ca(400, "accountDoesNotExist", "unknown"), false, 0, nil},
		{"an authority that fails", ca(500, "serverInternal", "oops"), false, 0, []string{"oops"}},
		{"an account that is refused", &accountError{fmt.Errorf("x: %w", ca(400, "externalAccountRequired", "no binding")), time.Unix(9, 0)}, false, 0,
			[]string{"there is no account with the authority: no binding", "--ingress-acme-server"}},
		{"no network", errors.New("dial tcp: lookup ca.example: no such host"), false, 0, []string{"no such host"}},
		{"a foreign authority of certificates", fmt.Errorf("Get: %w", x509.UnknownAuthorityError{}), false, 0, []string{"--ingress-acme-ca-file"}},
		{"a certificate out of time", fmt.Errorf("Get: %w", x509.CertificateInvalidError{Reason: x509.Expired}), false, 0, []string{"Where this server's clock is wrong, set it (NTP)"}},
		{"silence", fmt.Errorf("x: %w", context.DeadlineExceeded), false, 0, []string{"did not answer in time"}},
		{"long and of several lines", proof(ca(400, "dns", strings.Repeat("long\n", 1000))), true, 0, []string{"long long"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := classifyError(c.err)
			testenv.False(t, v.refused != c.refused || v.wait != c.wait, "refused %t, wait %s", v.refused, v.wait)
			for _, want := range c.messages {
				testenv.True(t, strings.Contains(v.text, want), "it says %q, without %q", v.text, want)
			}
			testenv.False(t, strings.Contains(v.text, "\n") || len(v.text) > 900, "it says too much: %q", v.text)
		})
	}
}

func TestBackoffsGrowToALimit(t *testing.T) {
	for _, c := range []struct {
		failures    int
		short, long time.Duration
	}{
		{1, 5 * time.Second, 15 * time.Minute}, {2, 10 * time.Second, 30 * time.Minute}, {6, 160 * time.Second, 8 * time.Hour},
		{1_000_000, 15 * time.Minute, 8 * time.Hour},
	} {
		if s, l := shortBackoff(c.failures), longBackoff(c.failures); s != c.short || l != c.long {
			t.Errorf("after %d failures %s and %s", c.failures, s, l)
		}
	}
}

// TestAuthoritysProblemTextIsSanitized: what an authority says is bounded, and holds nothing that a terminal takes for
// an order.
func TestAuthoritysProblemTextIsSanitized(t *testing.T) {
	e := &acme.Error{
		StatusCode: 429, ProblemType: rateLimited, Detail: "\x1b[2Jgone\u202e\x00" + strings.Repeat("x", 10_000), Header: http.Header{"Retry-After": {"9000000000"}},
	}
	for range 1000 {
		e.Subproblems = append(e.Subproblems, acme.Subproblem{Detail: "\x1b[2J", Identifier: &acme.AuthzID{Value: strings.Repeat("\x07y", 1000)}})
	}
	for _, err := range []error{e, &acme.AuthorizationError{Identifier: "\x1b[2J" + strings.Repeat("z", 10_000), Errors: []error{e}}} {
		v := classifyError(err)
		testenv.False(t, len(v.text) > 2000 || strings.ContainsAny(v.text, "\x1b\x00\x07\u202e"), "it says %q", v.text)
		testenv.False(t, v.wait > maxWait, "it waits for %v", v.wait)
	}
}

// endless is an answer that does not end.
type endless struct{ read int }

func (e *endless) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusInternalServerError, Header: http.Header{}, Body: io.NopCloser(e), Request: r}, nil
}

func (e *endless) Read(to []byte) (int, error) {
	e.read += len(to)
	for i := range to {
		to[i] = ' '
	}
	if e.read > 100*maxResponse {
		return 0, errors.New("it was read for too long")
	}
	return len(to), nil
}

func TestAuthoritysAnswersAreBounded(t *testing.T) {
	e := &endless{}
	c := &acme.Client{HTTPClient: New(Options{Transport: e}).http, DirectoryURL: "https://ca.example/directory", RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return 0 }}
	if _, err := c.Discover(t.Context()); err == nil || e.read > 2*maxResponse {
		t.Errorf("%d bytes were read: %v", e.read, err)
	}
}
