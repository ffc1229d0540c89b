// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

// failure is an error with a message for the user.
type failure struct {
	reason    helmjob.Reason
	retryable bool // the same request may succeed later
	message   string
}

func (f *failure) Error() string { return f.message }

// newFailure returns a failure. Its message is one line that begins with a capital letter.
func newFailure(reason helmjob.Reason, again bool, format string, args ...any) error {
	message := strings.Join(strings.Fields(clipMessage(fmt.Sprintf(format, args...))), " ")
	return &failure{reason: reason, retryable: again, message: asSentence(message)}
}

// asSentence turns the text of an error into a sentence: with a capital letter in front and a full stop.
func asSentence(s string) string {
	s = strings.TrimSpace(s)
	first, size := utf8.DecodeRuneInString(s)
	if s = string(unicode.ToUpper(first)) + s[size:]; !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// maxMessage is the maximum length of a message, in bytes. A chart's template can fail with a message of a hundred
// megabytes, and the parent process keeps the message in memory.
const maxMessage = 8 << 10

func clipMessage(s string) string { return truncate.Text(s, maxMessage) }

// unreachableFailure returns a failure that says why a repository or registry could not be used. The parameter what
// names the requested thing, in words that fit inside a sentence, and without credentials.
func unreachableFailure(what string, err error) error {
	var (
		known     *failure
		unknown   x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verifying *tls.CertificateVerificationError
		answer    *errcode.ErrorResponse
		dns       *net.DNSError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &host):
		return newFailure(helmjob.RepositoryNotTrusted, true, "The certificate of %s is for another host: %v.", what, host)
	case errors.As(err, &unknown):
		return newFailure(helmjob.RepositoryNotTrusted, true, "The certificate of %s is signed by an authority that is not trusted here. Give "+
			"the authority's certificate in repoCA or repoCAConfigMap.", what)
	case errors.As(err, &invalid), errors.As(err, &verifying):
		return newFailure(helmjob.RepositoryNotTrusted, true, "The certificate of %s is not valid: %v.", what, err)
	case errors.As(err, &answer):
		return statusFailure(what, answer.StatusCode)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return statusFailure(what, http.StatusUnauthorized)
	case errors.Is(err, errdef.ErrNotFound):
		return statusFailure(what, http.StatusNotFound)
	case errors.As(err, &dns):
		return newFailure(helmjob.RepositoryUnreachable, true, "The host of %s is not known: %v.", what, dns)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return newFailure(helmjob.RepositoryUnreachable, true, "The registry that has %s speaks no TLS. If it is meant to be reached without, "+
			"set plainHTTP.", what)
	}
	return newFailure(helmjob.RepositoryUnreachable, true, "%s cannot be fetched: %v.", what, err)
}

// statusFailure returns a failure that says what the HTTP status of a response means.
func statusFailure(what string, status int) error {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return newFailure(helmjob.Unauthorized, true, "%s is refused to us (%d %s): the user or password is missing or wrong. Give them with "+
			"authSecret, or dockerRegistrySecret for a registry.", what, status, http.StatusText(status))
	case http.StatusNotFound, http.StatusGone:
		return newFailure(helmjob.ChartNotFound, true, "%s does not exist (%d %s).", what, status, http.StatusText(status))
	}
	return newFailure(helmjob.RepositoryUnreachable, true, "%s cannot be fetched: the server answered %d %s.", what, status,
		http.StatusText(status))
}

// actionFailure returns a failure that says why an installation or upgrade failed. Helm has no error types for the
// causes, so they are recognized by the error's text. The message for an unrecognized cause holds the whole text.
func (j *job) actionFailure(reason helmjob.Reason, err error) error {
	text := err.Error()
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
	again := j.req.FailurePolicy != helmjob.Abort
	timedOut := errors.Is(err, context.DeadlineExceeded) || has("context deadline exceeded")
	switch {
	case has("cluster unreachable", "cluster reachability check failed", "connection refused"):
		return newFailure(helmjob.ClusterUnreachable, true, "The API server does not answer: %v. What is half-done is taken up again.", err)
	case has("values don't meet the specifications of the schema"):
		return newFailure(helmjob.InvalidValues, false, "The values do not fit the chart: %v.", err)
	case has("cannot be imported into the current release"):
		return newFailure(helmjob.Conflict, true, "Nothing was changed, since the chart's objects would overwrite others: %v. Remove what is "+
			"in the way, or set takeOwnership.", err)
	case meta.IsNoMatchError(err), has("no matches for kind", "ensure CRDs are installed first"):
		return newFailure(helmjob.RenderFailed, true, "Nothing was changed, since the cluster does not know a kind of object that the chart "+
			"has: %v. A chart with its definition may have to come first.", err)
	case has("unable to build kubernetes objects", "error validating data", "execution error at", "parse error at", "template: ",
		"YAML parse error", "error converting YAML"):
		return newFailure(helmjob.RenderFailed, false, "Nothing was changed, since the chart's templates fail with these values: %v.", err)
	case has("failed pre-install", "failed post-install", "pre-upgrade hooks failed", "post-upgrade hooks failed"):
		if timedOut {
			return newFailure(helmjob.TimedOut, again, "A hook of the chart was not done after %s: %v.", j.timeout(), err)
		}
		return newFailure(helmjob.HookFailed, again, "A hook of the chart failed: %v.", err)
	case timedOut:
		return newFailure(helmjob.TimedOut, again, "The release was not ready after %s: %v.", j.timeout(), err)
	}
	return newFailure(reason, again, "The cluster refused a part of the chart: %v.", err)
}
