// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// mirrors reads the annotations that send copies of requests to another URL.
func (o *options) mirrors() {
	text, ok := o.annotations["mirror-target"]
	if !ok {
		return
	}
	m := table.Mirror{Numerator: 1, Denominator: 1}
	var e table.External
	// A variable that begins with a slash may follow the host.
	rest := ""
	if scheme, place, ok := strings.Cut(text, "://"); ok {
		at := strings.IndexAny(place, "/?$")
		if at > 0 && (strings.HasPrefix(place[at:], "$request_uri") || strings.HasPrefix(place[at:], "$uri")) {
			text, rest = scheme+"://"+place[:at]+"/", place[at:]
		}
	}
	if _, err := variable.Parse(rest); err != nil || !isVisible(rest) {
		o.refuseAnnotation("mirror-target", "which is no URL that can be served")
	}
	switch why := o.server(text, &e); {
	case why != "":
		o.refuseAnnotation("mirror-target", why)
	case e.Self:
		o.refuseAnnotation("mirror-target", "in which the host is the request's own")
	}
	if m.URL = e.URL; rest != "" {
		m.URL = strings.TrimSuffix(e.URL, "/") + rest
	}
	if e.Backend != nil {
		m.Backend = *e.Backend
	}
	if host, ok := o.annotations["mirror-host"]; ok {
		if !outsideName.MatchString(host) {
			o.refuseAnnotation("mirror-host", "which is no host")
		}
		m.Backend.RequestHeaders = &table.Headers{Set: []table.Header{{Name: "Host", Value: host}}}
	}
	m.NoBody = o.annotations["mirror-request-body"] != "" && !o.onOff("mirror-request-body")
	o.policy.Mirrors = []table.Mirror{m}
}

// fallbackOf reads the annotations about a second backend, and about the responses that it replaces.
func (o *options) fallbackOf(name string) {
	service, ok := o.annotations["default-backend"]
	if !ok {
		if _, ok := o.annotations["custom-http-errors"]; ok {
			o.refuseAnnotation("custom-http-errors", "and default-backend names no Service that makes the answers")
		}
		return
	}
	if !headerName.MatchString(service) || strings.ToLower(service) != service {
		o.refuseAnnotation("default-backend", "which is no name of a Service of this namespace")
		return
	}
	f := &table.Fallback{Backend: table.Backend{Namespace: o.namespace, Service: service}}
	for _, text := range o.list("custom-http-errors") {
		status, err := strconv.Atoi(text)
		if err != nil || status < 400 || status > 599 {
			o.refuseAnnotation("custom-http-errors", "in which a part is no status from 400 to 599")
			return
		}
		if !slices.Contains(f.Statuses, status) {
			f.Statuses = append(f.Statuses, status)
		}
	}
	o.flag("disable-proxy-intercept-errors", &f.Own)
	f.Headers = []table.Header{{Name: "X-Namespace", Value: o.namespace}, {Name: "X-Ingress-Name", Value: name}}
	o.policy.Fallback = f
}

// namedBy returns the fallback of a route, with headers that name the Service that it replaces.
func namedBy(f *table.Fallback, b *networkingv1.IngressBackend) *table.Fallback {
	if f == nil || b.Service == nil {
		return f
	}
	out := *f
	out.Headers = append(slices.Clone(f.Headers), table.Header{Name: "X-Service-Name", Value: b.Service.Name},
		table.Header{Name: "X-Service-Port", Value: cmp.Or(b.Service.Port.Name, strconv.Itoa(int(b.Service.Port.Number)))})
	return &out
}

// replacements reads the annotations that change headers of responses.
func (o *options) replacements() {
	for _, a := range []struct {
		name string
		to   **table.Replacement
	}{{"proxy-cookie-domain", &o.policy.CookieDomain}, {"proxy-cookie-path", &o.policy.CookiePath}} {
		text, ok := o.annotations[a.name]
		if !ok || text == "off" {
			continue
		}
		if words := strings.Fields(text); len(words) == 2 {
			*a.to = o.replacement(a.name, words[0], words[1])
		} else {
			o.refuseAnnotation(a.name, "which is neither off nor two words: what is replaced, and by what")
		}
	}
	from, ok := o.annotations["proxy-redirect-from"]
	to, has := o.annotations["proxy-redirect-to"]
	switch {
	case from == "off" || from == "default":
	case ok != has:
		o.refuseFor(nginxPrefix+"proxy-redirect-from",
			"of the annotations %sproxy-redirect-from and -to one is missing: the Ingress' routes answer 503", nginxPrefix)
	case ok:
		o.policy.Location = o.replacement("proxy-redirect-from", from, to)
	}
}

func (o *options) replacement(name, from, to string) *table.Replacement {
	switch _, err := variable.Parse(to); {
	case err != nil:
		o.refuseAnnotation(name, "which cannot be served, since "+err.Error())
	case strings.HasPrefix(from, "~"):
		o.refuseAnnotation(name, "and expressions are not served")
	case strings.Contains(from, "$") || !isVisible(from) || !isVisible(to) || strings.Contains(to, ";"):
		o.refuseAnnotation(name, "which holds what is no plain text")
	}
	return &table.Replacement{From: from, To: to}
}
