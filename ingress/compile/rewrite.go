// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// redirects reads the annotations that redirect requests.
func (o *options) redirects() {
	relative := false
	o.flag("relative-redirects", &relative)
	for _, r := range []struct {
		name string
		code int
		// if both are set, ingress-nginx uses the first
	}{{"temporal-redirect", http.StatusFound}, {"permanent-redirect", http.StatusMovedPermanently}} {
		location, ok := o.annotations[r.name]
		if !ok {
			continue
		}
		code := o.number(r.name+"-code", 300, 308, r.code)
		if _, err := variable.Parse(location); err != nil {
			o.refuseAnnotation(r.name, "which cannot be served, since "+err.Error())
		} else if !isVisible(location) || !isWebURL(location) {
			o.refuseAnnotation(r.name, "which is no URL of http or https")
		}
		if strings.HasPrefix(location, "/") && !relative {
			location = "$scheme://$host" + location
		}
		if o.policy.Redirect == nil {
			o.policy.Redirect = &table.Redirect{Status: code, Location: location}
		}
	}
	if root, ok := o.annotations["app-root"]; ok {
		if !strings.HasPrefix(root, "/") || !isVisible(root) || strings.Contains(root, "$") {
			o.refuseAnnotation("app-root", "which is no path that begins with a slash")
		}
		o.policy.AppRoot = root
	}
}

// groupPattern matches a reference to a capture group of the regular expression ($1 to $9). It also matches a $ that no
// such digit follows.
var groupPattern = regexp.MustCompile(`\$([1-9])?`)

// rewrites reads the annotations that change requests to backends.
func (o *options) rewrites() {
	if target, ok := o.annotations["rewrite-target"]; ok {
		groups := groupPattern.FindAllString(target, -1)
		if len(groups) > variable.MaxVariables {
			o.refuseAnnotation("rewrite-target", fmt.Sprintf("which has more than %d groups of the expression", variable.MaxVariables))
		}
		for _, found := range groups {
			if found == "$" {
				o.refuseAnnotation("rewrite-target", "which holds a variable that is not one of $1 to $9")
				break
			}
		}
		if strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://") {
			o.refuseAnnotation("rewrite-target", "which is on another host (temporal-redirect redirects)")
		} else if !isVisible(target) {
			o.refuseAnnotation("rewrite-target", "which is no path")
		}
		o.policy.Rewrite = target
	}
	for _, a := range []struct {
		name string
		to   *string
	}{{"upstream-vhost", &o.policy.UpstreamHost}, {"x-forwarded-prefix", &o.policy.ForwardedPrefix}} {
		*a.to = o.annotations[a.name]
		if !isVisible(*a.to) || strings.Contains(*a.to, "$") {
			o.refuseAnnotation(a.name, "which is no plain value of a header")
		}
	}
	o.aliases = o.list("server-alias")
}

// isVisible reports whether a text has at most 4,096 bytes, and neither spaces nor control characters.
func isVisible(text string) bool {
	return len(text) <= 4096 && strings.IndexFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }) < 0
}

// isWebURL reports whether the target of a redirect is of http or https. Where its scheme holds variables, the proxy
// decides later.
func isWebURL(target string) bool {
	scheme := table.SchemeOf(target)
	return scheme == "" || scheme == "http" || scheme == "https" || strings.Contains(scheme, "$")
}
