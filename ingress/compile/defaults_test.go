// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// TestDefaultsOfConfigMapHoldForIngresses: what the ConfigMap says holds for an Ingress that does not say it itself.
func TestDefaultsOfConfigMapHoldForIngresses(t *testing.T) {
	type keys = map[string]string
	trusted := Rules{TrustedProxies: []string{"192.0.2.0/24"}, ProxyProtocol: true}
	const refused = `"refused"`
	for _, c := range []struct {
		name        string
		data        keys
		annotations keys // of ingress-nginx
		rules       Rules
		want        string // the route's policy in JSON, or refused
		findings    string // of the ConfigMap: what they hold
	}{
		{"none", nil, nil, Rules{}, "null", ""},
		{"a size", keys{"proxy-body-size": "8m"}, nil, Rules{}, `{"bodyLimit":8388608}`, ""},
		{"a size of the Ingress' own", keys{"proxy-body-size": "8m"}, keys{"proxy-body-size": "1k"}, Rules{}, `{"bodyLimit":1024}`, ""},
		{"a size that is none", keys{"proxy-body-size": "much"}, keys{"proxy-body-size": "1k"}, Rules{}, refused, "no size"},
		{"time-outs", keys{"proxy-read-timeout": "90", "proxy-send-timeout": "30"}, nil, Rules{}, `{"idleSeconds":90}`, ""},
		{"source ranges", keys{"whitelist-source-range": "10.0.0.0/8"}, nil, Rules{}, `{"allow":["10.0.0.0/8"]}`, ""},
		{"of the Ingress' own by the other name", keys{"whitelist-source-range": "10.0.0.0/8"}, keys{"allowlist-source-range": "10.9.0.0/16"}, Rules{},
			`{"allow":["10.9.0.0/16"]}`, ""},
		{"denied ones add up with blocked ones", keys{"block-cidrs": "10.1.0.0/16", "denylist-source-range": "10.2.0.0/16"}, keys{"denylist-source-range": "10.3.0.0/16"}, Rules{},
			`{"deny":["10.3.0.0/16","10.1.0.0/16"]}`, ""},
		{"a blocked network that is none", keys{"block-cidrs": "ten"}, nil, Rules{}, refused, "no network"},
		{"authentication by a Service of another namespace", keys{"global-auth-url": "http://auth.auth.svc/ask", "global-auth-response-headers": "X-User"}, nil, Rules{},
			`{"external":{"url":"http://auth.auth.svc/ask","backend":{"namespace":"auth","service":"auth","port":"80"},"responseHeaders":["X-User"]}}`, ""},
		{"not where the Ingress has its own", keys{"global-auth-url": "http://auth.auth.svc/ask", "global-auth-response-headers": "X-User"}, keys{"auth-url": "https://a.example/"}, Rules{},
			`{"external":{"url":"https://a.example/"}}`, ""},
		{"an Ingress' own Service of another namespace is refused still", keys{"global-auth-url": "http://auth.auth.svc/ask"}, keys{"auth-url": "http://auth.auth.svc/ask"}, Rules{}, refused, ""},
		{"nor where it wants none", keys{"global-auth-url": "http://auth.auth.svc/ask"}, keys{"enable-global-auth": "false"}, Rules{}, "null", ""},
		{"nor at these paths", keys{"global-auth-url": "http://auth.auth.svc/ask", "no-auth-locations": "/health,/p"}, nil, Rules{}, "null", ""},
		{"an Ingress' own authentication holds at these paths", keys{"global-auth-url": "http://auth.auth.svc/ask", "no-auth-locations": "/p"}, keys{"auth-url": "https://a.example/"},
			Rules{}, `{"external":{"url":"https://a.example/"}}`, ""},
		{"headers of responses", keys{"hide-headers": "X-Powered-By, Server"}, nil, Rules{}, `{"responseHeaders":{"remove":["X-Powered-By","Server"]}}`, ""},
		{"a header of the connection", keys{"hide-headers": "Transfer-Encoding"}, nil, Rules{}, refused, "no header"},
		{"answers that are replaced, without what makes them", keys{"custom-http-errors": "404,503"}, nil, Rules{}, "null", ""},
		{"answers that are none", keys{"custom-http-errors": "404,many"}, nil, Rules{}, refused, "no status"},
		{"what only tunes", keys{"worker-processes": "4", "ssl-ciphers": "x", "log-format-upstream": "y", "gzip-level": "1", "disable-access-log": "true", "service-upstream": "true"}, nil, Rules{}, "null", "gzip-level, log-format-upstream"},
		{"no key of ingress-nginx's", keys{"proxy-bodysize": "1m", "whitelist-source-ranges": "10.0.0.0/8"}, nil, Rules{}, "null", "proxy-bodysize"},
		{"what is refused", keys{"http-snippet": "deny all;"}, nil, Rules{}, refused, "http-snippet"},
		{"a firewall", keys{"enable-modsecurity": "true"}, nil, Rules{}, refused, "enable-modsecurity"},
		{"what is refused and asks for nothing", keys{"enable-modsecurity": "false", "limit-rate": "0", "proxy-cookie-path": "off", "modsecurity-snippet": "", "add-headers": ""}, nil, Rules{}, "null", ""},
		{"headers of proxies that are not trusted", keys{"use-forwarded-headers": "true"}, nil, Rules{}, refused, "--ingress-trusted-proxies"},
		{"headers of trusted proxies", keys{"use-forwarded-headers": "true", "use-proxy-protocol": "true"}, nil, trusted, "null", ""},
		{"the PROXY protocol without the setting", keys{"use-proxy-protocol": "true"}, nil, Rules{TrustedProxies: trusted.TrustedProxies}, refused, "--ingress-proxy-protocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ing := ingress("a/x", 1, "h/p=w:80")
			for name, value := range c.annotations {
				ing.Annotations[nginxPrefix+name] = value
			}
			s := State{Ingresses: []*networkingv1.Ingress{ing}, Rules: c.rules, Memory: &Memory{}}
			desired(t, s) // without the ConfigMap: what is remembered of it must not stay
			if c.data != nil {
				s.Defaults = &corev1.ConfigMap{Data: c.data}
			}
			r := desired(t, s)
			var h table.Host
			if err := json.Unmarshal(r.Sections[table.HostKey(table.SiteIngress, "h")], &h); err != nil || len(h.Routes) != 1 {
				t.Fatal(len(h.Routes), err)
			}
			got := refused
			if h.Routes[0].Refused == "" {
				text, _ := json.Marshal(h.Routes[0].Policy)
				got = string(text)
			} else if len(h.Routes[0].Backends) > 0 {
				t.Errorf("the closed route has backends")
			}
			if got != c.want {
				t.Errorf("the policy is %s\nwant %s (%s)", got, c.want, h.Routes[0].Refused)
			}
			if said := fmt.Sprint(r.OfDefaults); !strings.Contains(said, c.findings) || (c.findings == "") != (len(r.OfDefaults) == 0) {
				t.Errorf("findings of the ConfigMap: %s", said)
			}
			if own := findings(r); strings.Contains(own, "a/x") != (c.want == refused) {
				t.Errorf("findings of the Ingress: %s", own)
			}
		})
	}
}

// TestDefaultsOfRedirects: the keys about redirects to https.
func TestDefaultsOfRedirects(t *testing.T) {
	for _, c := range []struct {
		data  map[string]string
		class string
		want  int
	}{
		{nil, Class, 0}, {map[string]string{"force-ssl-redirect": "true"}, Class, 308}, {map[string]string{"force-ssl-redirect": "true", "http-redirect-code": "301"}, Class, 301},
		{map[string]string{"force-ssl-redirect": "true", "no-tls-redirect-locations": "/p"}, "nginx", 0}, {map[string]string{"force-ssl-redirect": "false"}, Class, 0},
	} {
		ing := ingress("a/x", 1, "h/p=w:80")
		ing.Spec.IngressClassName = ptr.To(c.class)
		r := desired(t, State{Ingresses: []*networkingv1.Ingress{ing}, Defaults: &corev1.ConfigMap{Data: c.data}})
		var h table.Host
		if err := json.Unmarshal(r.Sections[table.HostKey(table.SiteIngress, "h")], &h); err != nil || len(h.Routes) != 1 || h.Routes[0].RedirectHTTPS != c.want {
			t.Errorf("%v: the routes are %+v, want a redirect of %d (%v)", c.data, h.Routes, c.want, err)
		}
	}
}
