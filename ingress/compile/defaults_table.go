// SPDX-License-Identifier: Apache-2.0

package compile

import "strings"

// ConfigKey is a key of ingress-nginx's ConfigMap.
type ConfigKey struct {
	Name    string
	Support Support
	// Annotation is the annotation whose default the key sets; empty for none.
	Annotation string
	// Note is one sentence about differences, or about what to do instead; empty for none.
	Note string
}

const (
	logNote     = "There is no access log by default, and the proxy's own log has a fixed form."
	tlsNote     = "TLS is 1.2 and 1.3 with what Go holds to be safe."
	traceNote   = "There is no tracing; the headers of a trace pass."
	workerNote  = "It tunes nginx' processes, tables and connections, of which there are none here."
	otherMapKey = "The value is NAMESPACE/NAME of a ConfigMap; while it is missing all Ingresses answer 503. Values are sent as they " +
		"are, without variables."
	trustedNote = "The servers have to be given --ingress-trusted-proxies; without it the key closes the routes."
)

// ConfigKeys are the keys of ingress-nginx's ConfigMap, in the order of their names. A test compares them with
// docs/ingress-nginx.md.
var ConfigKeys = []ConfigKey{
	{"add-headers", Done, "", otherMapKey + " Only answers of backends get them; custom-headers has precedence."},
	{"allow-backend-server-header", Ignored, "", "The header Server of a backend passes."},
	{"allow-cross-namespace-resources", Ignored, "", "A reference to another namespace always closes the route."},
	{"allow-snippet-annotations", Ignored, "", "Snippets are always refused."},
	{"annotation-value-word-blocklist", Ignored, "", "No annotation is put into a configuration as text."},
	{"annotations-risk-level", Ignored, "", ""},
	{"block-cidrs", Done, "", "Beside denylist-source-range, and no annotation lifts it."},
	{"block-referers", Refused, "", ""},
	{"block-user-agents", Refused, "", ""},
	{"compute-full-forwarded-for", Ignored, "", "X-Forwarded-For of trusted proxies is always continued."},
	{"custom-http-errors", Done, "custom-http-errors", "For Ingresses with default-backend."},
	{"denylist-source-range", Done, "denylist-source-range", ""},
	{"enable-modsecurity", Refused, "", wafNote},
	{"enable-owasp-modsecurity-crs", Refused, "", wafNote},
	{"enable-real-ip", Done, "", trustedNote},
	{"enable-underscores-in-headers", Refused, "", "Headers with underscores are always removed."},
	{"force-ssl-redirect", Done, "force-ssl-redirect", ""},
	{"forwarded-for-header", Refused, "", "X-Forwarded-For is the only one."},
	{"global-auth-always-set-cookie", Done, "auth-always-set-cookie", ""},
	{"global-auth-cache-duration", Ignored, "", "Answers of the authentication server are not cached."},
	{"global-auth-cache-key", Ignored, "", "Answers of the authentication server are not cached."},
	{"global-auth-method", Done, "auth-method", ""},
	{"global-auth-request-redirect", Done, "auth-request-redirect", ""},
	{"global-auth-response-headers", Done, "auth-response-headers", ""},
	{"global-auth-signin", Done, "auth-signin", ""},
	{"global-auth-signin-redirect-param", Done, "auth-signin-redirect-param", ""},
	{"global-auth-snippet", Refused, "", snippetNote},
	{"global-auth-url", Done, "auth-url", "A Service of any namespace. With an auth-url of its own an Ingress has none of these keys, " +
		"and without them by enable-global-auth: \"false\"."},
	{"hide-headers", Done, "", "Headers of backends' responses that clients do not get."},
	{"hsts", Ignored, "", "Strict-Transport-Security is for the application to send."},
	{"http-redirect-code", Done, "", "301, 302, 307 and 308."},
	{"http-snippet", Refused, "", snippetNote},
	{"limit-conn-status-code", Ignored, "", "The status is 503."},
	{"limit-rate", Refused, "limit-rate", "Transmission rates are not bounded."},
	{"limit-rate-after", Refused, "limit-rate-after", ""},
	{"limit-req-status-code", Ignored, "", "The status is 503."},
	{"load-balance", Ignored, "load-balance", "Endpoints take turns."},
	{"location-snippet", Refused, "", snippetNote},
	{"main-snippet", Refused, "", snippetNote},
	{"modsecurity-snippet", Refused, "", wafNote},
	{"no-auth-locations", Done, "", "Beginnings of paths of Ingresses; the keys global-auth do not hold there. Annotations of " +
		"authentication do, where ingress-nginx lifts them, too."},
	{"no-tls-redirect-locations", Done, "", "Beginnings of paths of Ingresses."},
	{"proxy-body-size", Done, "proxy-body-size", ""},
	{"proxy-cookie-domain", Done, "proxy-cookie-domain", ""},
	{"proxy-cookie-path", Done, "proxy-cookie-path", ""},
	{"proxy-read-timeout", Done, "proxy-read-timeout", ""},
	{"proxy-real-ip-cidr", Ignored, "", "The networks are those of --ingress-trusted-proxies."},
	{"proxy-redirect-from", Done, "proxy-redirect-from", ""},
	{"proxy-redirect-to", Done, "proxy-redirect-to", ""},
	{"proxy-send-timeout", Done, "proxy-send-timeout", ""},
	{"proxy-set-headers", Done, "", otherMapKey},
	{"relative-redirects", Done, "relative-redirects", ""},
	{"server-snippet", Refused, "", snippetNote},
	{"service-upstream", Ignored, "service-upstream", ""},
	{"ssl-redirect", Done, "ssl-redirect", ""},
	{"stream-snippet", Refused, "", snippetNote},
	{"use-forwarded-headers", Done, "", trustedNote},
	{"use-proxy-protocol", Done, "", "The servers have to be given --ingress-proxy-protocol; without it the key closes the routes."},
	{"whitelist-source-range", Done, "whitelist-source-range", ""},
}

// tuningKeys are keys that only tune, by their note. A name that ends with - stands for all keys that begin with it.
var tuningKeys = []struct{ names, note string }{
	{"access-log-params access-log-path disable-access-log enable-access-log-for-default-backend enable-syslog error-log-level " +
		"error-log-path" +
		" http-access-log-path log-format- relax- skip-access-log-urls stream-access-log-path syslog-", logNote},
	{"disable-ipv6 disable-ipv6-dns enable-ocsp ssl-", tlsNote},
	{"datadog- enable-opentelemetry enable-opentracing generate-request-id jaeger- opentelemetry- opentracing- otel- otlp- zipkin-",
		traceNote},
	{"bind-address brotli- client- debug-connections default-type enable-aio-write enable-brotli enable-multi-accept " +
		"enable-serial-reloads" +
		" enable-http3 geoip2- grpc-buffer-size-kb gzip- hsts- http2- ignore-invalid-headers keep-alive keep-alive-requests " +
		"large-client-header-buffers" +
		" limit-conn-zone-variable lua-shared-dicts map-hash-bucket-size max-worker- nginx-status- plugins preload- proxy- quic- " +
		"retry-non-idempotent reuse-port" +
		" server-name-hash- server-tokens strict-validate-path-type upstream-keepalive- use-geoip use-geoip2 use-gzip use-http2 " +
		"variables-hash- worker-", workerNote},
}

// isTuningKey reports whether a key only tunes something that cannot be tuned in coracle.
func isTuningKey(key string) bool {
	for _, t := range tuningKeys {
		for name := range strings.FieldsSeq(t.names) {
			if key == name || strings.HasSuffix(name, "-") && strings.HasPrefix(key, name) {
				return true
			}
		}
	}
	return false
}
