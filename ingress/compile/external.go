// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

var (
	// serviceName is the name of a Service in the cluster's DNS.
	serviceName = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]*[a-z0-9])?)\.([a-z0-9]([-a-z0-9]*[a-z0-9])?)\.svc(\.cluster\.local)?\.?$`)
	outsideName = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9]*\.?[A-Za-z0-9])*\.?|\[[0-9A-Fa-f:.]+\])$`)
	headerName  = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$`)
	methodName  = regexp.MustCompile(`^[A-Z]{1,20}$`)
)

// external reads the annotations about an authentication server.
func (o *options) external() {
	text, ok := o.annotations["auth-url"]
	if !ok {
		if _, ok := o.annotations["auth-signin"]; ok {
			o.refuseAnnotation("auth-signin", "and there is no auth-url")
		}
		return
	}
	e := &table.External{}
	o.policy.External = e
	if why := o.server(text, e); why != "" {
		o.refuseAnnotation("auth-url", why)
	}
	if e.Method = o.annotations["auth-method"]; e.Method != "" && !methodName.MatchString(e.Method) {
		o.refuseAnnotation("auth-method", "which is no method")
	}
	e.ResponseHeaders = o.list("auth-response-headers")
	for _, name := range e.ResponseHeaders {
		if !headerName.MatchString(name) || reservedHeaders[strings.ToLower(name)] {
			o.refuseAnnotation("auth-response-headers", "in which a name is no header that can be copied")
		}
	}
	o.flag("auth-always-set-cookie", &e.AlwaysSetCookie)
	e.RequestRedirect = o.annotations["auth-request-redirect"]
	e.SignIn = signIn(o.annotations["auth-signin"], o.annotations["auth-signin-redirect-param"])
	for _, a := range []struct{ name, text string }{{"auth-request-redirect", e.RequestRedirect}, {"auth-signin", e.SignIn}} {
		if _, err := variable.Parse(a.text); err != nil || !isVisible(a.text) || !isWebURL(a.text) {
			o.refuseAnnotation(a.name, "which is no URL that can be served")
		}
	}
}

// reservedHeaders are headers of one connection or of message framing.
var reservedHeaders = map[string]bool{
	"connection": true, "content-length": true, "host": true, "keep-alive": true, "te": true, "trailer": true, "transfer-encoding": true,
	"upgrade":          true,
	"proxy-connection": true, "expect": true, "proxy-authenticate": true, "proxy-authorization": true, "http2-settings": true,
}

// server reads an auth-url. Its host is a Service in the namespace, the request's own host, or a name outside of the
// cluster.
func (o *options) server(text string, e *table.External) (why string) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || scheme != "http" && scheme != "https" && scheme != "$scheme" || !isVisible(text) || strings.Contains(text, "#") {
		return "which is no URL of http or https"
	}
	if _, err := variable.Parse(text); err != nil {
		return "which cannot be served, since " + err.Error()
	}
	host := rest
	if at := strings.IndexAny(rest, "/?"); at >= 0 {
		host = rest[:at]
	}
	if rest = rest[len(host):]; !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	if host == "$host" || host == "$http_host" || host == "$best_http_host" {
		e.Self, e.URL = true, "http://$host"+rest
		return ""
	}
	name, port := host, ""
	if at := strings.LastIndexByte(host, ':'); at > strings.LastIndexByte(host, ']') {
		name, port = host[:at], host[at+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "in which the port is no number"
		}
	}
	if !outsideName.MatchString(name) || scheme == "$scheme" {
		return "in which the host is neither $host nor a plain name"
	}
	e.URL = scheme + "://" + host + rest
	found := serviceName.FindStringSubmatch(strings.ToLower(name))
	switch {
	case found == nil:
		return ""
	case found[3] != o.namespace && !o.global:
		return "a Service of another namespace"
	case scheme != "http":
		return "a Service with TLS, which is not served yet (http is)"
	}
	port = cmp.Or(port, "80")
	e.Backend = &table.Backend{Namespace: found[3], Service: found[1], Port: port}
	return ""
}

// signIn returns the URL of the login page. If the parameter with the URL to return to is missing, it adds it, as
// ingress-nginx does.
func signIn(text, parameter string) string {
	if text == "" {
		return ""
	}
	parameter = cmp.Or(parameter, "rd")
	_, query, _ := strings.Cut(text, "?")
	for pair := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(pair, "="); name == parameter {
			return text
		}
	}
	separator := "?"
	if strings.Contains(text, "?") {
		separator = "&"
	}
	return text + separator + parameter + "=$pass_access_scheme://$http_host$escaped_request_uri"
}
