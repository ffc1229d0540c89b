// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
)

const (
	// linesPerSource and linesTotal limit the lines of the log that requests and connections without an identity cause,
	// a minute.
	linesPerSource, linesTotal = 5, 60
	// maxUnidentifiedURI limits the URI of a request without an identity, in bytes.
	maxUnidentifiedURI = 4 << 10
)

// identities authenticates requests before upstream's filters see them. A request that fails to authenticate passes
// only through those filters that refuse it (refusal), so no other one can log it. The lines that are left are limited.
type identities struct {
	authenticator.Request
	audiences authenticator.Audiences
	resolver  request.RequestInfoResolver
	lines     *recordLimit
	log       *slog.Logger
	served    sync.Once // sets the output of the HTTP server's own log
}

// authentication is the result of authenticating a request.
type authentication struct {
	response *authenticator.Response
	ok       bool
	err      error
}

type authenticationKey struct{}

// contextAuthenticator is an authenticator that returns the identity in the request's context.
type contextAuthenticator struct{}

// AuthenticateRequest implements authenticator.Request.
func (contextAuthenticator) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	i, _ := r.Context().Value(authenticationKey{}).(authentication)
	return i.response, i.ok, i.err
}

// identifyFirst makes a server's chain of filters begin with identities.
func identifyFirst(c *genericapiserver.Config, log *slog.Logger) {
	build := c.BuildHandlerChainFunc
	c.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		// The authenticator of the TokenReview API stays: it reads a token and no request.
		own := *c
		own.Authentication.Authenticator = contextAuthenticator{}
		i := &identities{
			Request: c.Authentication.Authenticator, audiences: c.Authentication.APIAudiences, resolver: c.RequestInfoResolver, log: log,
		}
		i.lines = &recordLimit{perSource: linesPerSource, total: linesTotal, report: func(leftOut int) {
			log.Warn("there were more requests and connections without an identity that failed; they have no lines of their own", "number", leftOut)
		}}
		return i.filter(build(api, &own), refusalHandler(&own))
	}
}

// refusalHandler is the part of upstream's chain that a request without an identity passes through. The CORS filter
// replies to a browser's preflight requests.
func refusalHandler(c *genericapiserver.Config) http.Handler {
	h := genericapifilters.Unauthorized(c.Serializer)
	h = genericapifilters.WithFailedAuthenticationAudit(h, c.AuditBackend, c.AuditPolicyRuleEvaluator)
	h = genericapifilters.WithAuthentication(http.NotFoundHandler(), contextAuthenticator{}, h, c.Authentication.APIAudiences,
		c.Authentication.RequestHeaderConfig)
	h = genericfilters.WithCORS(h, c.CorsAllowedOriginList, nil, nil, nil, "true")
	h = genericapifilters.WithCacheControl(h)
	h = genericfilters.WithHSTS(h, c.HSTSDirectives)
	h = genericapifilters.WithRequestInfo(h, c.RequestInfoResolver)
	h = genericapifilters.WithRequestReceivedTimestamp(h)
	return genericapifilters.WithAuditInit(h)
}

// filter passes requests with an identity, and those that anonymous clients may make, to api.
func (i *identities) filter(api, refusal http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.limitServerLog(r)
		ctx := r.Context()
		if len(i.audiences) > 0 {
			ctx = authenticator.WithAudiences(ctx, i.audiences)
		}
		var who authentication
		who.response, who.ok, who.err = i.AuthenticateRequest(r.WithContext(ctx))
		failed := who.err != nil || !who.ok
		if failed || who.response.User.GetName() == user.Anonymous {
			if code, reason := i.malformed(r); code != 0 {
				i.refuse(w, r, code, reason)
				return
			}
		}
		if who.err != nil {
			// Upstream logs an error. Without one, its metric counts the attempt as failed all the same.
			if i.lines.allow(sourceOf(r.RemoteAddr)) {
				who.err = fmt.Errorf("%s, from %s", shortenRecord(who.err.Error()), r.RemoteAddr)
			} else {
				who.err, who.ok = nil, false
			}
		}
		ctx = context.WithValue(r.Context(), authenticationKey{}, who)
		if failed {
			refusal.ServeHTTP(w, r.WithContext(ctx))
			return
		}
		// The user is in the audit events of filters before upstream's own authentication, too.
		api.ServeHTTP(w, r.WithContext(request.WithUser(ctx, who.response.User)))
	})
}

// malformed says why a request without an identity is refused before upstream's filters and audit see it. These would
// log each one (a time limit that is none, selectors, a path without a resource). code is 0 if it is not refused.
func (i *identities) malformed(r *http.Request) (code int, reason string) {
	if len(r.RequestURI) > maxUnidentifiedURI {
		return http.StatusRequestURITooLong,
			fmt.Sprintf("the URI has %d bytes: without an identity %d are accepted", len(r.RequestURI), maxUnidentifiedURI)
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if timeout := query.Get("timeout"); err == nil && timeout != "" {
		_, err = time.ParseDuration(timeout)
	}
	if err == nil {
		var list metainternalversion.ListOptions
		err = metainternalversionscheme.ParameterCodec.DecodeParameters(query, metav1.SchemeGroupVersion, &list)
	}
	if err == nil {
		_, err = i.resolver.NewRequestInfo(r)
	}
	if err != nil {
		return http.StatusBadRequest, err.Error()
	}
	return 0, ""
}

// refuse replies to a malformed request, and closes its connection as upstream does after a failed authentication.
func (i *identities) refuse(w http.ResponseWriter, r *http.Request, code int, reason string) {
	reason = shortenRecord(reason)
	if i.lines.allow(sourceOf(r.RemoteAddr)) {
		i.log.Warn("refused a malformed request without an identity", "from", r.RemoteAddr, "reason", reason)
	}
	w.Header().Set("Connection", "close")
	http.Error(w, reason, code)
}

// limitServerLog limits the lines that the HTTP server writes by itself. Upstream sends them to stderr, and a client
// without an identity can cause one with each GOAWAY frame. The server can only be found through a request.
func (i *identities) limitServerLog(r *http.Request) {
	s, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok || s.ErrorLog == nil { // a request in memory
		return
	}
	i.served.Do(func() { s.ErrorLog.SetOutput(serverLog{s.ErrorLog.Writer(), i}) })
}

// serverLog is the output of an HTTP server's own log. Failed handshakes go to upstream's, which counts them.
type serverLog struct {
	handshakes io.Writer
	i          *identities
}

// Write implements io.Writer.
func (l serverLog) Write(line []byte) (int, error) {
	text := string(line)
	if strings.Contains(text, "http: TLS handshake error") {
		return l.handshakes.Write(line)
	}
	if l.i.lines.allow(sourceOf("")) {
		l.i.log.Warn("the API's HTTP server reports an error", "error", shortenRecord(strings.TrimSpace(text)))
	}
	return len(line), nil
}
