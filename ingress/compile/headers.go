// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// maxHeaders limits the headers of one ConfigMap, in bytes, since each route holds them.
const maxHeaders = 8 << 10

// headers are the headers in the ConfigMaps that an Ingress, or Defaults, names: for responses, for the authentication
// server and for backends.
type headers struct {
	answer, ask, request []table.Header
	size                 int
	refused              string // why the routes are closed
	field                string // what names the ConfigMap for which they are
}

// configMaps reads the annotations that name ConfigMaps with headers.
func (o *options) configMaps() {
	o.answerHeaders = o.configMapOf("custom-headers")
	if o.askHeaders = o.configMapOf("auth-proxy-set-headers"); o.askHeaders.Name != "" && o.policy.External == nil {
		o.refuseAnnotation("auth-proxy-set-headers", "and there is no auth-url")
	}
}

func (o *options) configMapOf(annotation string) types.NamespacedName {
	text, ok := o.annotations[annotation]
	if !ok {
		return types.NamespacedName{}
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok {
		namespace, name = o.namespace, text
	}
	switch {
	case namespace != o.namespace:
		o.refuseAnnotation(annotation, "a ConfigMap of another namespace")
		return types.NamespacedName{}
	case name == "" || strings.ContainsAny(name, "/ "):
		o.refuseAnnotation(annotation, "which is no name of a ConfigMap")
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// WantedConfigMaps returns the ConfigMaps that served Ingresses name.
func WantedConfigMaps(s State) map[types.NamespacedName]bool {
	out := map[types.NamespacedName]bool{}
	memory := s.memory()
	for _, ing := range servedIngresses(s) {
		o := memory.optionsOf(ing)
		for _, name := range []types.NamespacedName{o.answerHeaders, o.askHeaders, o.defaults.answerHeaders, o.defaults.requestHeaders} {
			if name.Name != "" {
				out[name] = true
			}
		}
	}
	return out
}

// readCommon reads the ConfigMaps with headers for all Ingresses into c.common. While one is missing, all routes are
// closed. c.common stays nil if there are none.
func (c *compiler) readCommon() {
	d := c.s.Memory.defaults
	if c.s.ConfigMaps == nil || d.refused != "" || d.answerHeaders.Name == "" && d.requestHeaders.Name == "" {
		return
	}
	c.common = &headers{}
	c.common.answer = c.headers(c.common, "add-headers", d.answerHeaders)
	c.common.request = c.headers(c.common, "proxy-set-headers", d.requestHeaders)
	if why := c.common.refused; why != "" {
		c.r.OfDefaults = append(slices.Clip(c.r.OfDefaults), Finding{ReasonUnsupported, c.common.field, why})
	}
}

// headersOf reads the ConfigMaps of an Ingress. While one is missing, the Ingress' routes are closed, since its headers
// may protect a page, or an authentication server may need them. Its own headers have precedence over those for all
// Ingresses. It returns nil for none.
func (c *compiler) headersOf(ing *networkingv1.Ingress, o *options) *headers {
	if c.s.ConfigMaps == nil || o.answerHeaders.Name == "" && o.askHeaders.Name == "" {
		if c.common != nil && c.common.refused != "" {
			c.find(ing, Finding{ReasonUnsupported, c.common.field, c.common.refused})
		}
		return c.common
	}
	out := &headers{}
	if c.common != nil {
		*out = *c.common
	}
	// The last header of a name counts.
	out.answer = slices.Concat(out.answer, c.headers(out, nginxPrefix+"custom-headers", o.answerHeaders))
	out.ask = c.headers(out, nginxPrefix+"auth-proxy-set-headers", o.askHeaders)
	if out.refused != "" {
		c.find(ing, Finding{ReasonUnsupported, out.field, out.refused})
	}
	return out
}

// headers returns the headers in a ConfigMap, ordered by name. field is the annotation or the key that names it.
func (c *compiler) headers(of *headers, field string, name types.NamespacedName) []table.Header {
	if name.Name == "" {
		return nil
	}
	m := c.s.ConfigMaps[name]
	if m == nil {
		of.field, of.refused = field, fmt.Sprintf("the ConfigMap %s with headers does not exist: the routes that need it answer 503", name)
		return nil
	}
	var out []table.Header
	size := 0
	for _, key := range slices.Sorted(maps.Keys(m.Data)) {
		value := m.Data[key]
		control := strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
		if !headerName.MatchString(key) || reservedHeaders[strings.ToLower(key)] || control {
			of.field, of.refused = field, fmt.Sprintf("the ConfigMap %s with headers has %.60q, which is no header that can be sent:"+
				" the routes that need it answer 503", name, key)
			return nil
		}
		if size += len(key) + len(value); size > maxHeaders {
			of.field, of.refused = field, fmt.Sprintf(
				"the ConfigMap %s has more than %d bytes of headers: the routes that need it answer 503",
				name, maxHeaders)
			return nil
		}
		out = append(out, table.Header{Name: key, Value: value})
	}
	of.size += size
	return out
}

// memoryCost returns the cost of the headers in the table for one route. h may be nil.
func (h *headers) memoryCost() int {
	if h == nil {
		return 0
	}
	return textFactor * h.size
}

// refuses returns the reason for which a route is closed because of the expressions of its Ingress, or of its headers;
// "" for none.
func (c *compiler) refuses(r *route) string {
	switch {
	case c.closed[r.ing] != "":
		return c.closed[r.ing]
	case r.headers == nil:
		return ""
	case r.headers.refused != "":
		return r.headers.refused
	case !c.reserve(r.ing.Namespace, r.headers.memoryCost()):
		f := tooLarge(r.ing.Namespace, "a route with headers of a ConfigMap answers 503")
		c.find(r.ing, f)
		return f.Message
	}
	return ""
}

// setHeaders sets the headers in a route's policy. h may be nil.
func (h *headers) setHeaders(p *table.Policy) {
	if h == nil {
		return
	}
	if len(h.answer) > 0 {
		all := table.Headers{Set: h.answer}
		if p.ResponseHeaders != nil {
			all.Remove = p.ResponseHeaders.Remove
		}
		p.ResponseHeaders = &all
	}
	if len(h.request) > 0 {
		p.RequestHeaders = &table.Headers{Set: h.request}
	}
	if p.External != nil && len(h.ask) > 0 {
		e := *p.External
		e.Headers = h.ask
		p.External = &e
	}
}
