// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	nginxPrefix = "nginx.ingress.kubernetes.io/"
	// The greatest that a tenant may write, in bytes: an object's annotations, an object, and what the walk makes of
	// one namespace.
	mostAnnotations, mostObject, mostInAll = 250 << 10, 1400 << 10, 20 << 20
	// Bounds of the walk: the answers of another tenant's host, the proxy's memory in hundredths of its limit, and the
	// first compilation and the next ones.
	slowest, mostMemory, slowestFirst, slowestNext = time.Second, 80, 5 * time.Second, 2 * time.Second
	otherHost                                      = "good.example"
)

// greatest is the largest value of an annotation in so many bytes, with the annotations without which it is not read.
type greatest struct {
	of   func(size int) string
	with map[string]string
}

// repeated is items of a list until the size is reached. item gets a number.
func repeated(separator string, item func(n int) string) func(int) string {
	return func(size int) string {
		var out strings.Builder
		for n := 0; ; n++ {
			next := item(n)
			if n > 0 && out.Len()+len(separator)+len(next) > size {
				return out.String()
			}
			if n > 0 {
				out.WriteString(separator)
			}
			out.WriteString(next)
		}
	}
}

func text(before string) func(int) string {
	return func(size int) string { return before + strings.Repeat("x", max(0, size-len(before))) }
}

func fixed(value string) func(int) string { return func(int) string { return value } }

func pairs(of ...string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(of); i += 2 {
		out[of[i]] = of[i+1]
	}
	return out
}

func networks(n int) string { return fmt.Sprintf("10.%d.%d.0/24", n>>8&255, n&255) }
func header(n int) string   { return "X-H" + strconv.Itoa(n) }
func origin(n int) string   { return fmt.Sprintf("https://*.o%d.example", n) }

// variables is a text in which each variable repeats what the client sent.
func variables(before string) func(int) string {
	return func(size int) string { return before + strings.Repeat("$request_uri", max(1, (size-len(before))/12)) }
}

// costlyExpression has a program near the bound, with a text of 1 KiB at most.
const costlyExpression = "(xxxxxxxxxxxxxxx){60}(yyyyyyyyyyyyyy){50}"

var (
	external = pairs("auth-url", "http://auth.bad.svc.cluster.local/")
	cookie   = pairs("affinity", "cookie")
	cross    = pairs("enable-cors", "true")
	users    = pairs("auth-type", "basic", "auth-secret", "users")
	clients  = pairs("auth-tls-secret", "bad/ca")
	backends = pairs("backend-protocol", "HTTPS", "proxy-ssl-verify", "on", "proxy-ssl-name", "b.example", "proxy-ssl-secret", "bad/ca")
	fallback = pairs("default-backend", "web")
	canary   = pairs("canary", "true", "canary-by-header", "X-Canary")
	mirror   = pairs("mirror-target", "http://web.bad.svc.cluster.local/")
	moved    = pairs("permanent-redirect", "https://b.example/")
	regex    = pairs("use-regex", "true", "rewrite-target", "/$1")
)

// largest has the largest value of each annotation that is served.
var largest = map[string]greatest{
	"affinity": {fixed("cookie"), nil}, "affinity-canary-behavior": {fixed("sticky"), cookie}, "affinity-mode": {fixed("persistent"), cookie},
	"allowlist-source-range": {repeated(",", networks), nil}, "whitelist-source-range": {repeated(",", networks), nil},
	"denylist-source-range": {repeated(",", networks), nil}, "limit-allowlist": {repeated(",", networks), pairs("limit-rps", "1000000")},
	"limit-whitelist": {repeated(",", networks), pairs("limit-rps", "1000000")},
	"app-root":        {text("/"), nil}, "auth-always-set-cookie": {fixed("true"), external}, "auth-method": {fixed("POST"), external},
	"auth-proxy-set-headers": {fixed("bad/headers"), external}, "auth-realm": {text("a"), users}, "auth-request-redirect": {variables(""), external},
	"auth-response-headers": {repeated(",", header), external}, "auth-secret": {fixed("users"), users}, "auth-secret-type": {fixed("auth-file"), users},
	"auth-signin": {variables("https://b.example/"), external}, "auth-signin-redirect-param": {text("a"), pairs("auth-url", external["auth-url"], "auth-signin", "https://b.example/")},
	"auth-tls-error-page": {text("https://b.example/"), clients}, "auth-tls-match-cn": {fixed("CN=" + costlyExpression), clients},
	"auth-tls-pass-certificate-to-upstream": {fixed("true"), clients}, "auth-tls-secret": {fixed("bad/ca"), nil}, "auth-tls-verify-client": {fixed("optional"), clients},
	"auth-type": {fixed("basic"), users}, "auth-url": {variables("http://auth.bad.svc.cluster.local/"), nil}, "backend-protocol": {fixed("GRPCS"), nil},
	"canary": {fixed("true"), canary}, "canary-by-cookie": {text("c"), canary}, "canary-by-header": {text("X-"), canary},
	"canary-by-header-pattern": {fixed(costlyExpression), canary}, "canary-by-header-value": {text("v"), canary}, "canary-weight": {fixed("50"), canary},
	"canary-weight-total":    {fixed("1000000"), canary},
	"cors-allow-credentials": {fixed("true"), cross}, "cors-allow-headers": {repeated(",", header), cross}, "cors-allow-methods": {repeated(",", func(int) string { return "GET" }), cross},
	"cors-allow-origin": {repeated(",", origin), cross}, "cors-expose-headers": {repeated(",", header), cross}, "cors-max-age": {fixed("2147483647"), cross}, "enable-cors": {fixed("true"), nil},
	"custom-headers": {fixed("bad/headers"), nil}, "custom-http-errors": {repeated(",", func(n int) string { return strconv.Itoa(400 + n%200) }), fallback},
	"default-backend": {fixed("web"), nil}, "disable-proxy-intercept-errors": {fixed("true"), fallback}, "enable-global-auth": {fixed("false"), nil},
	"force-ssl-redirect": {fixed("true"), nil}, "from-to-www-redirect": {fixed("true"), nil},
	"limit-burst-multiplier": {fixed("1000000"), pairs("limit-rps", "1")}, "limit-connections": {fixed("1"), nil}, "limit-rpm": {fixed("1"), nil}, "limit-rps": {fixed("1"), nil},
	"mirror-host": {text("h"), mirror}, "mirror-request-body": {fixed("on"), mirror}, "mirror-target": {variables("http://web.bad.svc.cluster.local/"), nil},
	"permanent-redirect": {variables("https://b.example/"), nil}, "permanent-redirect-code": {fixed("308"), moved}, "preserve-trailing-slash": {fixed("true"), nil},
	"proxy-body-size": {fixed("1000g"), nil}, "proxy-cookie-domain": {text("a.example b"), nil}, "proxy-cookie-path": {text("/a /"), nil},
	"proxy-read-timeout": {fixed("100000"), nil}, "proxy-redirect-from": {text("http://a/"), pairs("proxy-redirect-to", "/")}, "proxy-redirect-to": {text("/"), pairs("proxy-redirect-from", "http://a/")},
	"proxy-send-timeout": {fixed("100000"), nil}, "proxy-ssl-name": {fixed(strings.Repeat("a.", 120) + "example"), backends},
	"proxy-ssl-protocols": {repeated(" ", func(int) string { return "TLSv1.3" }), backends}, "proxy-ssl-secret": {fixed("bad/ca"), backends},
	"proxy-ssl-server-name": {fixed("on"), backends}, "proxy-ssl-verify": {fixed("on"), backends}, "relative-redirects": {fixed("true"), moved},
	"rewrite-target": {func(size int) string { return strings.Repeat("/$1", min(32, size/3)) }, regex}, "satisfy": {fixed("any"), nil},
	"server-alias":          {repeated(",", func(n int) string { return fmt.Sprintf("a%d.alias.example", n) }), nil},
	"session-cookie-domain": {text("d"), cookie}, "session-cookie-expires": {fixed("2147483647"), cookie}, "session-cookie-max-age": {fixed("2147483647"), cookie},
	"session-cookie-name": {text("n"), cookie}, "session-cookie-path": {text("/"), cookie}, "session-cookie-samesite": {fixed("Strict"), cookie}, "session-cookie-secure": {fixed("true"), cookie},
	"ssl-passthrough": {fixed("true"), nil}, "ssl-redirect": {fixed("true"), nil}, "temporal-redirect": {variables("https://b.example/"), nil},
	"temporal-redirect-code": {fixed("307"), pairs("temporal-redirect", "https://b.example/")}, "upstream-hash-by": {variables(""), nil},
	"upstream-vhost": {text("v"), nil}, "use-regex": {fixed("true"), regex}, "x-forwarded-prefix": {text("/"), nil},
}

// withPaths is an Ingress of the namespace bad with so many paths. costly makes each an expression near the bound.
func withPaths(name string, paths int, costly bool, annotations map[string]string, hosts ...string) *networkingv1.Ingress {
	ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "bad", Name: name, UID: types.UID(name), Annotations: map[string]string{},
		CreationTimestamp: metav1.Unix(2_000_000_000, 0)}}
	ing.Spec.IngressClassName = new("nginx")
	for key, value := range annotations {
		ing.Annotations[nginxPrefix+key] = value
	}
	kind := networkingv1.PathTypePrefix
	if costly {
		kind = networkingv1.PathTypeImplementationSpecific
	}
	for _, host := range hosts {
		rule := networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{}}}
		for n := range paths {
			path := fmt.Sprintf("/%s/%d", name, n)
			if paths == 1 {
				path = "/"
			}
			if costly {
				path += costlyExpression
			}
			rule.HTTP.Paths = append(rule.HTTP.Paths, networkingv1.HTTPIngressPath{Path: path, PathType: &kind, Backend: networkingv1.IngressBackend{
				Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}}})
		}
		ing.Spec.Rules = append(ing.Spec.Rules, rule)
	}
	return ing
}

// tenant is what the namespace bad has in a step of the walk.
type tenant struct {
	name      string
	ingresses []*networkingv1.Ingress
}

// values returns the annotations with a value of so many bytes.
func (g greatest) values(name string, size int) map[string]string {
	out := maps.Clone(g.with)
	if out == nil {
		out = map[string]string{}
	}
	out[name] = g.of(size)
	return out
}

// most returns the size of the largest value that the annotation may have. It returns 0 if it is always refused.
func (g greatest) most(t testing.TB, name string) int {
	for size := mostAnnotations; size >= 10; size = size * 2 / 3 {
		step := tenant{ingresses: []*networkingv1.Ingress{withPaths("w", 1, false, g.values(name, size), "bad.example")}}
		if step.ingresses[0].Annotations[nginxPrefix+"canary"] != "" {
			step.ingresses = append(step.ingresses, withPaths("main", 1, false, nil, "bad.example"))
		}
		r := testenv.Must(compile.Desired(stateOf(t, step, nil)))(t)
		if !slices.ContainsFunc(r.Findings[types.NamespacedName{Namespace: "bad", Name: "w"}], func(f compile.Finding) bool {
			return f.Reason == compile.ReasonUnsupported && f.Field == nginxPrefix+name
		}) {
			return size
		}
	}
	return 0
}

// annotated are the steps for one annotation: few routes with its largest value, many Ingresses with one of some KB,
// and many routes with a short one.
func (g greatest) annotated(t testing.TB, name string) []tenant {
	var out []tenant
	most := g.most(t, name)
	for _, shape := range []struct {
		name            string
		size, n, paths  int
		ownHost, costly bool
	}{
		{"large values", most, mostInAll / mostObject, 1, true, false},
		{"many Ingresses", min(most, 4<<10), mostInAll / (5 << 10), 1, true, false},
		{"many paths", min(most, 100), 5, 3000, false, name == "use-regex"},
	} {
		if shape.paths > 1 && name == "ssl-passthrough" { // it needs the path /
			continue
		}
		t := tenant{name: name + ", " + shape.name}
		for i := range shape.n {
			host := "bad.example"
			if shape.ownHost {
				host = fmt.Sprintf("bad%d.example", i)
			}
			values := g.values(name, shape.size)
			if values["canary"] != "" {
				t.ingresses = append(t.ingresses, withPaths(fmt.Sprintf("m%d", i), shape.paths, false, nil, host))
				c := withPaths(fmt.Sprintf("m%d", i), shape.paths, false, values, host)
				c.Name = fmt.Sprintf("c%d", i)
				t.ingresses = append(t.ingresses, c)
				continue
			}
			t.ingresses = append(t.ingresses, withPaths(fmt.Sprintf("w%d", i), shape.paths, shape.costly, values, host))
		}
		out = append(out, t)
	}
	return out
}

// treated are the names of annotations that are treated in one way.
func treated(how compile.Support) (out []string) {
	for _, a := range compile.Annotations {
		if a.Support == how {
			out = append(out, a.Name)
		}
	}
	return out
}

// unserved is a step with all annotations that are ignored or refused, which share an object's annotations.
func unserved(how compile.Support) tenant {
	names, all := treated(how), map[string]string{}
	for _, name := range names {
		all[name] = strings.Repeat("x", mostAnnotations/len(names))
	}
	t := tenant{name: "all that are " + string(how)}
	for i := range mostInAll / mostObject {
		t.ingresses = append(t.ingresses, withPaths(fmt.Sprintf("w%d", i), 3000, false, all, "bad.example"))
	}
	return t
}

// fields are the steps for the fields of an Ingress.
func fields() []tenant {
	var hosts []string
	for n := range 6000 {
		hosts = append(hosts, fmt.Sprintf("bad%d.%s.example", n, strings.Repeat("x", 60)))
	}
	tls := withPaths("tls", 1, false, pairs("ssl-redirect", "false"), "bad.example")
	for n := range 5000 {
		tls.Spec.TLS = append(tls.Spec.TLS, networkingv1.IngressTLS{SecretName: fmt.Sprintf("s%d", n), Hosts: hosts[n : n+1]})
	}
	tls.Annotations["kubernetes.io/tls-acme"] = "true"
	backends := withPaths("backends", 6000, false, nil, "bad.example")
	for n := range backends.Spec.Rules[0].HTTP.Paths {
		backends.Spec.Rules[0].HTTP.Paths[n].Backend.Service.Name = fmt.Sprintf("s%d", n)
	}
	long := withPaths("long", 300, false, nil, "bad.example")
	for n := range long.Spec.Rules[0].HTTP.Paths {
		long.Spec.Rules[0].HTTP.Paths[n].Path += "/" + strings.Repeat("/x", 2000)
	}
	each := func(name string, of *networkingv1.Ingress) tenant {
		t := tenant{name: name}
		for i := range mostInAll / mostObject {
			one := of.DeepCopy()
			one.Name += strconv.Itoa(i)
			t.ingresses = append(t.ingresses, one)
		}
		return t
	}
	anywhere := withPaths("any", 3000, false, nil, "")
	anywhere.Spec.DefaultBackend = &anywhere.Spec.Rules[0].HTTP.Paths[0].Backend
	return []tenant{
		each("spec.tls", tls), each("spec.rules: hosts", withPaths("hosts", 1, false, nil, hosts...)), each("spec.rules: backends", backends),
		each("spec.rules: long paths", long), each("spec.rules: no host, and spec.defaultBackend", anywhere),
		each("spec.rules: expressions without a host", withPaths("re", 3000, true, regex, "")),
	}
}

// authorities is a file of authorities of 60 KB, which is made once.
var authorities = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "authorities")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ca, err := testca.New(dir)
	if err != nil {
		return nil, err
	}
	one, err := os.ReadFile(ca.File())
	return bytes.Repeat(one, (60<<10)/max(1, len(one))), err
})

// stateOf is the state of a cluster with a tenant beside another one, whose Ingress is older.
func stateOf(t testing.TB, of tenant, memory *compile.Memory) compile.State {
	good := withPaths("good", 1, false, nil, otherHost)
	good.Namespace, good.CreationTimestamp = "good", metav1.Unix(1_900_000_000, 0)
	headers := map[string]string{}
	for n := range 40 {
		headers[header(n)] = strings.Repeat("v", 180)
	}
	var all strings.Builder
	for n := range 9000 {
		fmt.Fprintf(&all, "user%d:$2y$14$abcdefghijklmnopqrstuuAbCdEfGhIjKlMnOpQrStUvWxYz01234\n", n)
	}
	authority := testenv.Must(authorities())(t)
	name := func(name string) types.NamespacedName { return types.NamespacedName{Namespace: "bad", Name: name} }
	return compile.State{
		Ingresses: append([]*networkingv1.Ingress{good}, of.ingresses...), Memory: memory,
		Secrets: map[types.NamespacedName]*corev1.Secret{
			name("users"): {Data: map[string][]byte{"auth": []byte(all.String())}}, name("ca"): {Data: map[string][]byte{"ca.crt": authority}},
		},
		ConfigMaps: map[types.NamespacedName]*corev1.ConfigMap{name("headers"): {Data: headers}},
	}
}

// TestEachAnnotationHasALargestValue: each annotation that is served has a largest value, which is read.
func TestEachAnnotationHasALargestValue(t *testing.T) {
	testenv.EqualSlices(t, slices.Sorted(maps.Keys(largest)), treated(compile.Done), "the annotations with a largest value are")
	for _, name := range slices.Sorted(maps.Keys(largest)) {
		size := largest[name].most(t, name)
		testenv.True(t, size > 0, "the largest value of %s is refused whatever its size", name)
	}
}

// hardest are requests that routes take most for, at a host and below a path.
func hardest(at string) []func(url string) *http.Request {
	host, below, _ := strings.Cut(at, "/")
	long := strings.Repeat("/x", 7000)
	of := func(method, path string, headers map[string]string) func(string) *http.Request {
		return func(url string) *http.Request {
			r, err := http.NewRequest(method, url+below+strings.TrimPrefix(path, "/"), nil)
			if err != nil {
				panic(err) // the paths are those below
			}
			r.Host = host
			for name, value := range headers {
				r.Header.Set(name, value)
			}
			return r
		}
	}
	many := map[string]string{"Origin": "https://x.o0.example"}
	for n := range 300 {
		many[header(n)] = strings.Repeat("v", 40)
	}
	return []func(string) *http.Request{
		of("GET", "/", nil), of("GET", long, nil), of("GET", "/?"+strings.Repeat("a=b&", 3500), nil),
		of("GET", "/", map[string]string{"Cookie": strings.Repeat("c=d; ", 2800), "X-Canary": strings.Repeat("x", 14000)}), of("OPTIONS", "/", many),
		of("GET", "/", map[string]string{"Authorization": "Basic dXNlcjA6cGFzc3dvcmQ=", "X-Forwarded-For": strings.Repeat("10.0.0.1, ", 1400)}),
	}
}

// watched asks another tenant's host until the test ends the watch, and keeps the longest answer.
type watched struct {
	answers, wrong atomic.Int64
	longest        atomic.Int64
	why            atomic.Pointer[error]
}

func (w *watched) ask(c *http.Client, url string) {
	r, _ := http.NewRequest(http.MethodGet, url, nil)
	r.Host = otherHost
	began := time.Now()
	res, err := c.Do(r)
	if err == nil {
		var body []byte
		body, err = io.ReadAll(res.Body)
		err = errors.Join(err, res.Body.Close())
		if err == nil && (res.StatusCode != http.StatusOK || string(body) != "hello") {
			err = fmt.Errorf("%s: %.100q", res.Status, body)
		}
	}
	w.longest.Store(max(w.longest.Load(), int64(time.Since(began))))
	if w.answers.Add(1); err != nil {
		w.wrong.Add(1)
		w.why.Store(&err)
	}
}

// peak returns the greatest resident memory of a process in bytes, since its start.
func peak(t testing.TB, pid int) int64 {
	t.Helper()
	text := string(testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(t))
	_, rest, _ := strings.Cut(text, "VmHWM:")
	n := testenv.Must(strconv.ParseInt(strings.Fields(rest)[0], 10, 64))(t)
	return n << 10
}

// TestLargestValuesOfATenantHarmNoOther gives each annotation and field of a tenant its largest value, and asks for the
// tenant's hosts with the requests that take most. Another tenant's host answers within a second all the while, and the
// proxy stays within its memory. make ingress-walk runs it.
func TestLargestValuesOfATenantHarmNoOther(t *testing.T) {
	if os.Getenv("CORACLE_TEST_WALK") == "" {
		// Its bounds of time need a quiet machine.
		t.Skip("make ingress-walk runs it, a quarter of an hour")
	}
	steps := fields()
	for _, name := range treated(compile.Done) {
		steps = append(steps, largest[name].annotated(t, name)...)
	}
	steps = append(steps, unserved(compile.Ignored), unserved(compile.Refused))
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			memory := &compile.Memory{}
			state := stateOf(t, step, memory)
			began := time.Now()
			r := testenv.Must(compile.Desired(state))(t)
			first := time.Since(began)
			state.Ingresses = slices.Clone(state.Ingresses)
			state.Ingresses[0] = state.Ingresses[0].DeepCopy()
			began = time.Now()
			testenv.Must(compile.Desired(state))(t)
			next := time.Since(began)
			walked(t, step.name, r.Sections, first, next, "bad.example", "bad0.example", "bad.example/w0/1", "bad.example/m0/1")
		})
	}
}

// walked serves a table beside the other tenant's requests, and judges what it saw.
func walked(t *testing.T, name string, sections table.Sections, first, next time.Duration, hosts ...string) {
	t.Helper()
	n := newTestNode(t)
	address := backend(t)
	node := &Node{o: n.o}
	node.useTable(t.Context(), sections)
	serves := node.table
	of := testenv.Must(serves.Backends())(t)
	for key := range of {
		testenv.NoError(t, serves.Put(key, table.Endpoints{Addresses: []string{address}}))
	}
	n.table = table.Sections{}
	for key := range serves { // the other tenant's alone, first
		if key == table.HostKey(table.SiteIngress, otherHost) || table.Kind(key) == table.KindEndpoints && strings.Contains(key, "good") {
			n.table[key] = serves[key]
		}
	}
	k := n.run()
	var w watched
	stop := make(chan struct{})
	var running sync.WaitGroup
	again := func(f func()) {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	kept := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{MaxIdleConnsPerHost: 32, DisableCompression: true}}
	closing := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	// The pauses are the rate of the other tenant's requests.
	again(func() { w.ask(closing, k.url()); time.Sleep(5 * time.Millisecond) })
	again(func() { w.ask(kept, k.url()); time.Sleep(5 * time.Millisecond) })
	eventually(t, "the other tenant is served", func() bool { return w.answers.Load()-w.wrong.Load() > 20 })
	n.table = serves
	began := time.Now()
	problems, err := k.sendTable(t.Context(), n.table)
	testenv.NoError(t, err)
	put := time.Since(began)
	var asked atomic.Int64
	for _, host := range hosts {
		for _, of := range hardest(host) {
			again(func() {
				if res, err := kept.Do(of(k.url())); err == nil {
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
				asked.Add(1)
			})
		}
	}
	until := time.Now().Add(2 * time.Second)
	eventually(t, "the other tenant was served beside the requests", func() bool { return time.Now().After(until) })
	close(stop)
	running.Wait()
	top := peak(t, k.processes.Processes[0].PID)
	longest, of100 := time.Duration(w.longest.Load()), top*100/defaultMemory
	t.Logf("walk: %-50s | first %4d ms | next %4d ms | put %4d ms | answers %4d wrong %d longest %4d ms | %3d MiB %3d%% | asked %5d | problems %d", name,
		first.Milliseconds(), next.Milliseconds(), put.Milliseconds(), w.answers.Load(), w.wrong.Load(), longest.Milliseconds(), top>>20, of100, asked.Load(), len(problems))
	if why := w.why.Load(); why != nil {
		t.Errorf("of %d answers of another tenant's host %d were wrong: %v", w.answers.Load(), w.wrong.Load(), *why)
	}
	testenv.True(t, longest <= slowest, "an answer of another tenant's host took %v", longest)
	testenv.True(t, of100 <= mostMemory, "the proxy has %d MiB, which is %d%% of its limit", top>>20, of100)
	testenv.True(t, first <= slowestFirst && next <= slowestNext, "compiling takes %v, and then %v", first, next)
}
