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

// maxHeaders bounds the headers of one ConfigMap in bytes: each route holds them.
const maxHeaders = 8 << 10

// headers are those of the ConfigMaps that an Ingress names.
type headers struct {
	answer, ask []table.Header
	size        int
	refused     string // why the routes are closed
}

// configMaps reads the annotations that name ConfigMaps with headers.
func (o *options) configMaps() {
	o.answerHeaders = o.configMapOf("custom-headers")
	if o.askHeaders = o.configMapOf("auth-proxy-set-headers"); o.askHeaders.Name != "" && o.policy.External == nil {
		o.bad("auth-proxy-set-headers", "and there is no auth-url")
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
		o.bad(annotation, "a ConfigMap of another namespace")
		return types.NamespacedName{}
	case name == "" || strings.ContainsAny(name, "/ "):
		o.bad(annotation, "which is no name of a ConfigMap")
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// WantedConfigMaps are the ConfigMaps that served Ingresses name.
func WantedConfigMaps(s State) map[types.NamespacedName]bool {
	out := map[types.NamespacedName]bool{}
	memory := s.memory()
	for _, ing := range served(s) {
		o := memory.optionsOf(ing)
		for _, name := range []types.NamespacedName{o.answerHeaders, o.askHeaders} {
			if name.Name != "" {
				out[name] = true
			}
		}
	}
	return out
}

// headersOf reads the ConfigMaps of an Ingress. While one is missing, the Ingress' routes are closed, since its headers may be what
// protects a page, or what an authentication server needs. It returns nil for none.
func (c *compiler) headersOf(ing *networkingv1.Ingress, o *options) *headers {
	if c.s.ConfigMaps == nil || o.answerHeaders.Name == "" && o.askHeaders.Name == "" {
		return nil
	}
	out := &headers{}
	out.answer = c.headers(out, o.answerHeaders)
	out.ask = c.headers(out, o.askHeaders)
	if out.refused != "" {
		c.find(ing, Finding{ReasonUnsupported, out.refused})
	}
	return out
}

// headers are those of a ConfigMap, in the order of their names.
func (c *compiler) headers(of *headers, name types.NamespacedName) []table.Header {
	if name.Name == "" {
		return nil
	}
	m := c.s.ConfigMaps[name]
	if m == nil {
		of.refused = fmt.Sprintf("the ConfigMap %s with headers does not exist: the Ingress' routes answer 503", name.Name)
		return nil
	}
	var out []table.Header
	for _, key := range slices.Sorted(maps.Keys(m.Data)) {
		value := m.Data[key]
		control := strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
		if !headerName.MatchString(key) || reserved[strings.ToLower(key)] || control {
			of.refused = fmt.Sprintf("the ConfigMap %s with headers has %.60q, which is no header that can be sent:"+
				" the Ingress' routes answer 503", name.Name, key)
			return nil
		}
		if of.size += len(key) + len(value); of.size > maxHeaders {
			of.refused = fmt.Sprintf("the ConfigMap %s has more than %d bytes of headers: the Ingress' routes answer 503",
				name.Name, maxHeaders)
			return nil
		}
		out = append(out, table.Header{Name: key, Value: value})
	}
	return out
}

// cost is what the headers take in the table for one route. h may be nil.
func (h *headers) cost() int {
	if h == nil {
		return 0
	}
	return textFactor * h.size
}

// refuses says why a route is closed because of its headers; empty for one that is not.
func (c *compiler) refuses(r *route) string {
	switch {
	case r.headers == nil:
		return ""
	case r.headers.refused != "":
		return r.headers.refused
	case !c.room(r.ing.Namespace, r.headers.cost()):
		f := tooLarge(r.ing.Namespace, "a route with headers of a ConfigMap answers 503")
		c.find(r.ing, f)
		return f.Message
	}
	return ""
}

// give puts the headers into a route's policy. h may be nil.
func (h *headers) give(p *table.Policy) {
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
	if p.External != nil && len(h.ask) > 0 {
		e := *p.External
		e.Headers = h.ask
		p.External = &e
	}
}
