// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// nginxPrefix is the prefix of ingress-nginx's annotations.
const nginxPrefix = "nginx.ingress.kubernetes.io/"

// options are the settings in an Ingress' annotations.
type options struct {
	namespace   string
	annotations map[string]string
	nginx       bool // the class is nginx, whose quirks apply
	protocol    string
	// sslRedirect redirects plain HTTP to https at hosts of Ingresses with spec.tls. forceHTTPS does so at all hosts.
	sslRedirect, forceHTTPS bool
	useRegex                bool
	// specific, unless it is empty, is the kind of paths of pathType ImplementationSpecific.
	specific      table.PathKind
	www           bool
	aliases       []string
	policy        table.Policy
	users         *users               // nil for none
	streams       bool                 // TLS connections are forwarded unread
	tls           *table.BackendTLS    // nil if certificates of backends are not verified
	tlsSecret     types.NamespacedName // for TLS to backends; its name is empty for none
	clientsSecret types.NamespacedName // for clients' certificates; its name is empty for none
	answerHeaders types.NamespacedName // a ConfigMap of response headers; its name is empty for none
	askHeaders    types.NamespacedName // a ConfigMap of headers for the authentication server; its name is empty for none
	canary        *table.Canary
	persistent    bool // affinity-mode
	legacy        bool // affinity-canary-behavior
	expressions   []expression.Expression
	size          int // of the annotations in bytes; each route may hold a copy of them
	refused       string
	findings      []Finding
	object        string // the Ingress' name in the table
	plain         bool   // policy changes nothing
	defaults      *defaults
	global        bool // authentication is the default of all Ingresses
}

// optionsOf reads the annotations. An annotation of ingress-nginx that is unsupported, or has an invalid value, closes
// the routes, since it may restrict access. An unsupported one that only tunes is ignored.
func optionsOf(ing *networkingv1.Ingress, d *defaults) options {
	o := options{namespace: ing.Namespace, object: "Ingress/" + ing.Namespace + "/" + ing.Name, annotations: map[string]string{},
		nginx: ClassOf(ing) == "nginx"}
	o.sslRedirect = o.nginx // ingress-nginx redirects for an Ingress with spec.tls
	var ignored []string
	for _, name := range slices.Sorted(maps.Keys(ing.Annotations)) {
		short, ok := strings.CutPrefix(name, nginxPrefix)
		if !ok {
			continue
		}
		value := strings.TrimSpace(ing.Annotations[name])
		o.size += len(value)
		switch a, known := annotationOf(short); {
		case !known:
			o.refuseFor(name,
				"the annotation %s is not one of ingress-nginx's that are known here: the Ingress' routes answer 503, for it may "+
					"restrict who gets in. Remove it if the routes do not need it", name)
		case value == "" || a.Support == Refused && (value == "false" || value == "off"): // no setting
		case a.Support == Refused:
			o.refuseFor(name,
				"the annotation %s is not served: the Ingress' routes answer 503, for it may restrict who gets in or change what "+
					"they get.%s", name, hintFor(a))
		case a.Support == Ignored:
			ignored = append(ignored, short)
		default:
			o.annotations[short] = value
		}
	}
	if len(ignored) > 0 {
		o.findings = append(o.findings, Finding{ReasonIgnored, fieldsOf(nginxPrefix, ignored), fmt.Sprintf(
			"the Ingress is served without these annotations of %s*, which only tune: %s", nginxPrefix, strings.Join(ignored, ", "))})
	}
	o.inherit(d)
	o.read()
	if d.refused != "" {
		o.refuseFor("", "%s", d.refused)
	}
	o.passthrough(ing)
	o.fallbackOf(ing.Name)
	o.traefik(ing)
	o.plain = reflect.ValueOf(o.policy).IsZero()
	return o
}

// hintFor returns the sentence of an event that says what to do instead.
func hintFor(a Annotation) string {
	if a.Note == snippetNote {
		return " Snippets cannot be served; headers of responses, which most of them set, are for the application to send," +
			" or the annotation custom-headers sets them."
	}
	if a.Note == "" {
		return " Remove it if the routes do not need it."
	}
	return " " + a.Note
}

func annotationOf(short string) (Annotation, bool) {
	i, ok := slices.BinarySearchFunc(Annotations, short, func(a Annotation, name string) int { return strings.Compare(a.Name, name) })
	if !ok {
		return Annotation{}, false
	}
	return Annotations[i], true
}

// read interprets the annotations that are served.
func (o *options) read() {
	o.flag("ssl-redirect", &o.sslRedirect)
	o.flag("force-ssl-redirect", &o.forceHTTPS)
	o.flag("use-regex", &o.useRegex)
	o.flag("from-to-www-redirect", &o.www)
	o.backendProtocol(o.annotations["backend-protocol"])
	o.redirects()
	o.rewrites()
	o.sources()
	o.basic()
	o.external()
	o.configMaps()
	o.clientCertificates()
	o.backendTLS()
	o.mirrors()
	o.replacements()
	o.bodySize()
	o.timeouts()
	o.limits()
	o.cors()
	o.affinity()
	o.canaryOf()
}

// refuseFor closes the Ingress' routes, with a message about one of its fields.
func (o *options) refuseFor(field, format string, args ...any) {
	f := Finding{ReasonUnsupported, field, fmt.Sprintf(format, args...)}
	o.findings = append(o.findings, f)
	o.refused = cmp.Or(o.refused, f.Message)
}

// refuseAnnotation closes the routes because an annotation's value is invalid.
func (o *options) refuseAnnotation(name, why string) {
	o.refuseFor(nginxPrefix+name,
		"the annotation %s%s is %.100q, %s: the Ingress' routes answer 503", nginxPrefix, name, o.annotations[name], why)
}

// flag reads a boolean annotation.
func (o *options) flag(name string, to *bool) {
	text, ok := o.annotations[name]
	if !ok {
		return
	}
	value, err := strconv.ParseBool(text)
	if err != nil {
		o.refuseAnnotation(name, "which is neither true nor false")
		return
	}
	*to = value
}

// number reads an annotation with a whole number from least to most. It returns without if there is none.
func (o *options) number(name string, least, most, without int) int {
	text, ok := o.annotations[name]
	if !ok {
		return without
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		o.refuseAnnotation(name, fmt.Sprintf("which is no number from %d to %d", least, most))
		return without
	}
	return n
}

// list reads an annotation with items separated by commas.
func (o *options) list(name string) []string {
	var out []string
	for part := range strings.SplitSeq(o.annotations[name], ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func (o *options) backendProtocol(value string) {
	switch strings.ToUpper(value) {
	case "HTTP", "":
	case "GRPC":
		o.protocol = table.H2C
	case "HTTPS":
		o.protocol = table.HTTPS1
	case "GRPCS":
		o.protocol = table.H2
	default:
		o.refuseFor(nginxPrefix+"backend-protocol", "the backend protocol %.40s is not served: the Ingress' routes answer 503", value)
	}
}

// redirectOf returns the status with which a route redirects plain HTTP to https. 0 serves plain HTTP.
func (o *options) redirectOf(secure bool) int {
	if o.forceHTTPS || o.sslRedirect && secure {
		return o.defaults.redirect
	}
	return 0
}
