// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// Defaults is the name of the ConfigMap with ingress-nginx's keys that applies to all Ingresses.
var Defaults = types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: "ingress"}

// defaults are the settings of a ConfigMap for all Ingresses. The zero value has none.
type defaults struct {
	// annotations are the values of annotations for Ingresses that have none of their own. auth are the values from the
	// keys global-auth.
	annotations, auth map[string]string
	deny              []string
	// noAuth and noRedirect are prefixes of paths. auth does not apply to those in noAuth. Those in noRedirect are not
	// redirected to https.
	noAuth, noRedirect []string
	hidden             []string // names of response headers to remove
	// answerHeaders and requestHeaders are ConfigMaps of headers for responses and for backends. Their names are empty
	// for none.
	answerHeaders, requestHeaders types.NamespacedName
	redirect                      int    // the status of redirects to https
	refused                       string // why no Ingress is served
	findings                      []Finding
}

func defaultsOf(m *corev1.ConfigMap, rules Rules) *defaults {
	d := &defaults{annotations: map[string]string{}, auth: map[string]string{}, redirect: http.StatusPermanentRedirect}
	if m == nil {
		return d
	}
	var ignored, unknown []string
	for _, key := range slices.Sorted(maps.Keys(m.Data)) {
		value := strings.TrimSpace(m.Data[key])
		k, known := configKeyOf(key)
		switch {
		case !known && isTuningKey(key) || known && k.Support == Ignored:
			ignored = append(ignored, key)
		case !known:
			unknown = append(unknown, key)
		case value == "" || k.Support == Refused && (value == "false" || value == "off" || value == "0"): // no setting
		case k.Support == Refused:
			d.refuseAllIngresses(key,
				"the key %s of the ConfigMap %s is not served: all Ingresses answer 503, for it may restrict who gets in or change "+
					"what they get. %s",
				key, Defaults, k.Note)
		case strings.HasPrefix(key, "global-auth-"):
			d.auth[k.Annotation] = value
		case k.Annotation != "":
			d.annotations[k.Annotation] = value
		default:
			d.key(key, value, rules)
		}
	}
	if len(ignored) > 0 {
		d.findings = append(d.findings, Finding{ReasonIgnored, fieldsOf("", ignored),
			"Ingresses are served without these keys, which only tune: " +
				strings.Join(ignored, ", ")})
	}
	if len(unknown) > 0 { // ingress-nginx ignores them, too
		d.findings = append(d.findings, Finding{ReasonIgnored, fieldsOf("", unknown),
			"these are no keys of ingress-nginx's, and have no effect: " +
				strings.Join(unknown, ", ")})
	}
	if d.refused == "" {
		d.checkValues()
	}
	return d
}

func configKeyOf(name string) (ConfigKey, bool) {
	i, ok := slices.BinarySearchFunc(ConfigKeys, name, func(k ConfigKey, name string) int { return strings.Compare(k.Name, name) })
	if !ok {
		return ConfigKey{}, false
	}
	return ConfigKeys[i], true
}

// key reads a key that is not the default of an annotation.
func (d *defaults) key(key, value string, rules Rules) {
	switch key {
	case "block-cidrs":
		o := options{annotations: map[string]string{key: value}}
		if d.deny = o.networks(key); o.refused != "" {
			d.reportValue(key, value, "in which something is no network")
		}
	case "no-auth-locations":
		d.noAuth = (&options{annotations: map[string]string{key: value}}).list(key)
	case "no-tls-redirect-locations":
		d.noRedirect = (&options{annotations: map[string]string{key: value}}).list(key)
	case "hide-headers":
		d.hidden = (&options{annotations: map[string]string{key: value}}).list(key)
		if slices.ContainsFunc(d.hidden, func(name string) bool {
			return !headerName.MatchString(name) ||
				reservedHeaders[strings.ToLower(name)]
		}) {
			d.reportValue(key, value, "in which a name is no header that can be left out")
		}
	case "add-headers":
		d.answerHeaders = d.configMap(key, value)
	case "proxy-set-headers":
		d.requestHeaders = d.configMap(key, value)
	case "http-redirect-code":
		n, err := strconv.Atoi(value)
		if err != nil || n != 301 && n != 302 && n != 307 && n != 308 {
			d.reportValue(key, value, "which is none of 301, 302, 307 and 308")
			return
		}
		d.redirect = n
	case "use-forwarded-headers", "enable-real-ip", "use-proxy-protocol":
		on, err := strconv.ParseBool(value)
		switch {
		case err != nil:
			d.reportValue(key, value, "which is neither true nor false")
		case on && key == "use-proxy-protocol" && !rules.ProxyProtocol:
			d.refuseAllIngresses(key,
				"the key %s of the ConfigMap %s has no effect while the servers are not given --ingress-proxy-protocol: all "+
					"Ingresses answer 503", key, Defaults)
		case on && len(rules.TrustedProxies) == 0:
			d.refuseAllIngresses(key,
				"the key %s of the ConfigMap %s has no effect while the servers are not given --ingress-trusted-proxies: all "+
					"Ingresses answer 503", key, Defaults)
		}
	}
}

// configMap reads the name of a ConfigMap, in any namespace.
func (d *defaults) configMap(key, value string) types.NamespacedName {
	namespace, name, _ := strings.Cut(value, "/")
	if namespace == "" || name == "" || strings.ContainsAny(name, "/ ") {
		d.reportValue(key, value, "which is no ConfigMap as NAMESPACE/NAME")
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: namespace, Name: name}
}

func (d *defaults) reportValue(key, value, why string) {
	d.refuseAllIngresses(key, "the key %s of the ConfigMap %s is %.100q, %s: all Ingresses answer 503", key, Defaults, value, why)
}

// refuseAllIngresses closes the routes of all Ingresses for a key; "" for one that is not known.
func (d *defaults) refuseAllIngresses(key, format string, args ...any) {
	f := Finding{ReasonUnsupported, key, strings.TrimSpace(fmt.Sprintf(format, args...))}
	d.findings = append(d.findings, f)
	d.refused = cmp.Or(d.refused, f.Message)
}

// checkValues reads the values once as an Ingress' annotations, so that errors are reported for the ConfigMap and not
// for an Ingress.
func (d *defaults) checkValues() {
	o := options{annotations: map[string]string{"default-backend": "any"}}
	o.inherit(d)
	o.read()
	if o.fallbackOf(""); o.refused != "" {
		d.refuseAllIngresses("",
			"a key of the ConfigMap %s is not understood, and all Ingresses answer 503, as one does for an annotation of the same "+
				"meaning: %s",
			Defaults, o.refused)
	}
}

// inherit adds the defaults for what an Ingress does not set itself.
func (o *options) inherit(d *defaults) {
	o.defaults = d
	if d.refused != "" {
		return
	}
	if len(d.hidden) > 0 {
		o.policy.ResponseHeaders = &table.Headers{Remove: d.hidden}
	}
	for name, value := range d.annotations {
		_, own := o.annotations[name]
		switch name {
		case "whitelist-source-range":
			own = own || o.annotations["allowlist-source-range"] != ""
		case "custom-http-errors":
			own = own || o.annotations["default-backend"] == "" // without it there is no backend for these responses
		}
		if !own {
			o.annotations[name] = value
		}
	}
	_, own := o.annotations["auth-url"]
	global := true
	if o.flag("enable-global-auth", &global); own || !global || d.auth["auth-url"] == "" {
		return
	}
	o.global = true
	maps.Copy(o.annotations, d.auth)
}

// hasAnyPrefix reports whether a path begins with one of some texts, as ingress-nginx compares them.
func hasAnyPrefix(path string, with []string) bool {
	return slices.ContainsFunc(with, func(text string) bool { return strings.HasPrefix(path, text) })
}
