// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// withExpressions makes an Ingress of the class nginx whose paths are expressions.
func withExpressions(name string, age int, host string, paths ...string) *networkingv1.Ingress {
	i := ingress(name, age)
	i.Spec.IngressClassName, i.Annotations[nginxPrefix+"use-regex"] = ptr.To("nginx"), "true"
	for _, path := range paths {
		i.Spec.Rules = append(i.Spec.Rules, networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{{Path: path, PathType: ptr.To(networkingv1.PathTypeImplementationSpecific), Backend: service("s:80")}},
		}}})
	}
	return i
}

func numberedPaths(n int, format string) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}

// has reports whether an Ingress has a finding of the reason with the words.
func has(r Result, name, reason, words string) bool {
	namespace, name, _ := strings.Cut(name, "/")
	return slices.ContainsFunc(r.Findings[types.NamespacedName{Namespace: namespace, Name: name}], func(f Finding) bool {
		return f.Reason == reason && strings.Contains(f.Message, words)
	})
}

// closedAt counts the closed routes of an object at a host.
func closedAt(t *testing.T, r Result, host, object string) (closed, all int) {
	t.Helper()
	var h table.Host
	testenv.NoError(t, json.Unmarshal(r.Sections[table.HostKey(table.SiteIngress, host)], &h))
	for _, one := range h.Routes {
		if one.Object == object {
			if all++; one.Refused != "" {
				closed++
			}
		}
	}
	return closed, all
}

// TestExpressionIsChargedOncePerNamespace: a proxy compiles a text once, whatever the number of its routes; a namespace
// whose different expressions take too much loses its youngest, which are closed.
func TestExpressionIsChargedOncePerNamespace(t *testing.T) {
	const costly = "/(%[1]d|x{900})"
	var all []*networkingv1.Ingress
	for i := range 400 {
		all = append(all, withExpressions(fmt.Sprintf("bad/x%03d", i), 1000-i, fmt.Sprintf("h%d", i), fmt.Sprintf(costly, i), "/(same|x{900})"))
	}
	all = append(all, withExpressions("good/x", 1, "good", fmt.Sprintf(costly, 1)))
	r := desired(t, State{Ingresses: all})
	closed, _ := closedAt(t, r, "h0", "Ingress/bad/x000")
	testenv.Equal(t, closed, 0, "routes of the oldest Ingress that are closed:")
	at := slices.IndexFunc(all, func(i *networkingv1.Ingress) bool {
		return has(r, i.Namespace+"/"+i.Name, ReasonTooLarge, "too much memory")
	})
	testenv.True(t, at > 100, "the first that is refused is %d", at)
	closed, n := closedAt(t, r, fmt.Sprintf("h%d", at), "Ingress/bad/"+all[at].Name)
	testenv.True(t, closed == 1 && n == 2, "%d of %d routes of the first that is refused are closed", closed, n)
	testenv.True(t, has(r, "bad/x399", ReasonTooLarge, ""), "the findings are %v", findings(r))
	closed, _ = closedAt(t, r, "good", "Ingress/good/x")
	testenv.Equal(t, closed, 0, "routes of another namespace that are closed:")
}

// TestYoungerExpressionsDisplaceNone: what expressions take is given in the order of the Ingresses' age, whatever the
// names of their hosts.
func TestYoungerExpressionsDisplaceNone(t *testing.T) {
	paths := func(namespace string) []string { return numberedPaths(130, "/"+namespace+"(%d|x{900})") }
	all := []*networkingv1.Ingress{withExpressions("a/old", 3, "z.example", paths("a")...)}
	for i, namespace := range []string{"b", "c"} { // they ask for all that two namespaces may have
		all = append(all, withExpressions(namespace+"/x", 2-i, namespace+".example", numberedPaths(200, "/"+namespace+"(%d|x{900})")...))
	}
	r := desired(t, State{Ingresses: all})
	closed, n := closedAt(t, r, "z.example", "Ingress/a/old")
	testenv.True(t, closed == 0 && n == 130, "%d of %d routes of the oldest are closed", closed, n)
	closed, _ = closedAt(t, r, "c.example", "Ingress/c/x")
	testenv.True(t, closed > 0, "the youngest has all")
}

// TestUnchargedAnnotationsCloseTheirRoutes: without room for the expression of an annotation the routes are closed,
// also those of other Ingresses that it would hold for.
func TestUnchargedAnnotationsCloseTheirRoutes(t *testing.T) {
	var all []*networkingv1.Ingress
	for i := range 200 { // until there is no room for another expression
		all = append(all, withExpressions(fmt.Sprintf("a/f%03d", i), 1000-i, fmt.Sprintf("f%d", i), fmt.Sprintf("/(%d|x{900})", i)))
		if i > 150 && len(desired(t, State{Ingresses: all}).Findings) > 0 {
			all = all[:i]
			break
		}
	}
	guard := ingress("a/guard", 2, "h/secret=s:80")
	shared := ingress("a/shared", 1, "h/open=s:80")
	for _, i := range []*networkingv1.Ingress{guard, shared} {
		i.Spec.IngressClassName = ptr.To("nginx")
	}
	guard.Annotations[nginxPrefix+"auth-tls-secret"], guard.Annotations[nginxPrefix+"auth-tls-match-cn"] = "a/ca", "CN="+strings.Repeat("(abc){65}", 5)
	r := desired(t, State{Ingresses: append(all, guard, shared)})
	for _, name := range []string{"guard", "shared"} {
		closed, n := closedAt(t, r, "h", "Ingress/a/"+name)
		testenv.True(t, closed == 1 && n == 1, "%d of %d routes of %s are closed", closed, n, name)
	}
	testenv.True(t, has(r, "a/guard", ReasonTooLarge, "expressions in annotations"), "the findings are %v", r.Findings)
	testenv.False(t, strings.Contains(string(r.Sections[table.HostKey(table.SiteIngress, "h")]), "abc"), "the expression is in the table")
}

// TestCostlyExpressionsOfTheDefaultHostAreClosed: of the namespaces with rules without a host the oldest may have as
// many expressions as it has room for, and each other as many as take no request's time.
func TestCostlyExpressionsOfTheDefaultHostAreClosed(t *testing.T) {
	r := desired(t, State{Ingresses: []*networkingv1.Ingress{
		withExpressions("old/x", 3, "", numberedPaths(40, "/old%d(/|$)(.*)")...), withExpressions("young/x", 2, "", numberedPaths(40, "/young%d(/|$)(.*)")...),
		withExpressions("plain/x", 1, "", numberedPaths(40, "/plain%d/and-some-more")...),
	}})
	for name, some := range map[string]bool{"old": false, "young": true, "plain": false} {
		closed, n := closedAt(t, r, "", "Ingress/"+name+"/x")
		testenv.True(t, n == 40 && (closed > 0) == some && closed < n, "%d of %d routes of %s are closed", closed, n, name)
		testenv.Equal(t, has(r, name+"/x", ReasonTooLarge, "without a host"), some, "%s has a finding:", name)
	}
}

// TestCostlyHostsAreFound: an event says that a host's expressions leave only short paths.
func TestCostlyHostsAreFound(t *testing.T) {
	for n, want := range map[int]bool{3: false, 10: true} {
		r := desired(t, State{Ingresses: []*networkingv1.Ingress{withExpressions("a/x", 1, "h", numberedPaths(n, "/(%d|x{900})")...)}})
		testenv.Equal(t, has(r, "a/x", ReasonCostly, "may be answered with 503"), want, "with %d expressions there is a finding:", n)
		testenv.True(t, expression.MaxRequest/1800/costlyPath < 10, "the greatest expressions of ten paths are not costly")
	}
}

// TestTextsOfOtherIngressesAreCharged: a route that another Ingress gives a canary, or settings for clients'
// certificates, holds their texts at each name of its host.
func TestTextsOfOtherIngressesAreCharged(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	for name, c := range map[string]struct {
		paths int
		other map[string]string // annotations of the other Ingress
	}{
		"a canary": {1, map[string]string{"canary": "true", "canary-by-header": "X", "canary-by-header-value": long}},
		"clients":  {150, map[string]string{"auth-tls-secret": "bad/ca", "auth-tls-error-page": "https://x.example/" + long[:4000]}},
	} {
		t.Run(name, func(t *testing.T) {
			main, more := ingress("bad/x", 3), ingress("bad/y", 2, "h/p0=s:80")
			for i := range c.paths {
				main.Spec.Rules = append(main.Spec.Rules, ingress("", 0, fmt.Sprintf("h/p%d=s:80", i)).Spec.Rules...)
			}
			var aliases []string
			for i := range 120 {
				aliases = append(aliases, fmt.Sprintf("alias%d", i))
			}
			main.Annotations[nginxPrefix+"server-alias"] = strings.Join(aliases, ",")
			for key, value := range c.other {
				more.Annotations[nginxPrefix+key] = value
			}
			if name == "clients" {
				more.Spec.Rules = ingress("", 0, "h/other=s:80").Spec.Rules
			}
			for _, i := range []*networkingv1.Ingress{main, more} {
				i.Spec.IngressClassName = ptr.To("nginx")
			}
			r := desired(t, State{Ingresses: []*networkingv1.Ingress{main, more, ingress("good/x", 1, "good/=s:80")}})
			size := 0
			for _, section := range r.Sections {
				size += len(section)
			}
			testenv.True(t, size <= maxTable/2/textFactor, "the table has %d KB", size>>10)
			testenv.False(t, r.Sections[table.HostKey(table.SiteIngress, "good")] == nil, "another namespace is not served")
		})
	}
}
