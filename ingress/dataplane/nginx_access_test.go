// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func with(more ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range more {
		maps.Copy(out, m)
	}
	return out
}

func login(user, secret string) map[string]string {
	return map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))}
}

func from(list string) map[string]string { return map[string]string{"X-Forwarded-For": list} }

func TestSourceRangesRestrictClients(t *testing.T) {
	trusted := table.Settings{TrustedProxies: []string{"127.0.0.0/8"}}
	for _, c := range []struct {
		name        string
		annotations annotations
		settings    table.Settings
		headers     map[string]string
		status      int
		finding     string
	}{
		{"the connection's address is allowed", annotations{"whitelist-source-range": "127.0.0.1"}, table.Settings{}, nil, 200, ""},
		{"not by what an untrusted client says", annotations{"whitelist-source-range": "10.0.0.0/8,::1"}, table.Settings{}, from("10.0.0.1"), 403, ""},
		{"by what a trusted proxy says", annotations{"allowlist-source-range": " 10.0.0.0/8 , fd00::/8"}, trusted, from("1.1.1.1, 10.0.0.1"), 200, ""},
		{"what comes before the last untrusted address does not count", annotations{"allowlist-source-range": "10.0.0.0/8"}, trusted, from("10.0.0.1, 1.1.1.1"), 403, ""},
		{"the newer name has precedence", annotations{"allowlist-source-range": "10.0.0.0/8", "whitelist-source-range": "127.0.0.1"}, table.Settings{}, nil, 403, ""},
		{"denied", annotations{"denylist-source-range": "127.0.0.0/8"}, table.Settings{}, nil, 403, ""},
		{"not denied", annotations{"denylist-source-range": "10.0.0.0/8"}, table.Settings{}, nil, 200, ""},
		{"an address that is none is denied", annotations{"denylist-source-range": "10.0.0.0/8"}, trusted, from("unknown"), 403, ""},
		{"denied though allowed", annotations{"denylist-source-range": "127.0.0.1", "allowlist-source-range": "127.0.0.0/8", "satisfy": "any"}, table.Settings{}, nil, 403, ""},
		{"one part is no network", annotations{"whitelist-source-range": "127.0.0.1, 10.0.0.0/33"}, table.Settings{}, nil, 503, "no network"},
		{"nothing but a comma", annotations{"whitelist-source-range": ","}, table.Settings{}, nil, 503, "no network"},
		{"an empty value", annotations{"whitelist-source-range": " "}, table.Settings{}, nil, 200, ""},
		{"a denied network behind a proxy", annotations{"denylist-source-range": "18.0.0.0/8, 56.0.0.1"}, trusted, from("18.0.0.1"), 403, ""},
		{"a denied address behind a proxy", annotations{"denylist-source-range": "18.0.0.0/8, 56.0.0.1"}, trusted, from("56.0.0.1"), 403, ""},
		{"beside a denied address", annotations{"denylist-source-range": "18.0.0.0/8, 56.0.0.1"}, trusted, from("56.0.0.2"), 200, ""},
		{"denied within what is allowed", annotations{"denylist-source-range": "18.1.0.0/16", "whitelist-source-range": "18.0.0.0/8"}, trusted, from("18.1.0.1"), 403, ""},
		{"allowed beside what is denied", annotations{"denylist-source-range": "18.1.0.0/16", "whitelist-source-range": "18.0.0.0/8"}, trusted, from("18.4.0.1"), 200, ""},
		{"neither denied nor allowed", annotations{"denylist-source-range": "18.1.0.0/16", "whitelist-source-range": "18.0.0.0/8"}, trusted, from("10.10.10.10"), 403, ""},
		{"any of no conditions", annotations{"satisfy": "any"}, table.Settings{}, nil, 200, ""},
		{"all of no conditions", annotations{"satisfy": "all"}, table.Settings{}, nil, 200, ""},
		{"satisfy something", annotations{"satisfy": "none"}, table.Settings{}, nil, 503, "neither any nor all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", c.annotations, "h/=w")}, settings: c.settings}.serve(t)
			exchanged{url: "http://h/", headers: c.headers, status: c.status}.check(t, f)
			if got := reasons(r); c.finding == "" && got != "" || !strings.Contains(got, c.finding) {
				t.Errorf("findings:\n%s", got)
			}
		})
	}
}

func TestBasicAuthenticationChecksPasswords(t *testing.T) {
	strong := testenv.Must(bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost))(t)
	costly := strings.Replace(string(strong), "$04$", "$31$", 1)
	file := func(text string) map[string]string { return map[string]string{"auth": text} }
	basic := annotations{"auth-type": "basic", "auth-secret": "s", "auth-realm": "my realm"}
	good := fmt.Sprintf("# comment\n\nme:%s\nold:$apr1$abcdefgh$ZAdX7G.l3eDbgTYbm5ePE0:a note\nme:x\n", strong)
	challenge := map[string]string{"WWW-Authenticate": `Basic realm="my realm"`}
	for _, c := range []struct {
		name        string
		annotations annotations
		secret      map[string]string
		requests    []exchanged
		finding     string
	}{
		{"a file", basic, file(good), []exchanged{
			{url: "http://h/", status: 401, answer: challenge}, {url: "http://h/", headers: login("me", "wrong"), status: 401, answer: challenge},
			{url: "http://h/", headers: login("me", "right")}, {url: "http://h/", headers: login("me", "right")}, {url: "http://h/", headers: login("me", "x"), status: 401},
			{url: "http://h/", headers: login("old", "secret pass")}, {url: "http://h/", headers: login("", ""), status: 401},
			{url: "http://h/", headers: map[string]string{"Authorization": "Bearer x"}, status: 401},
			{url: "http://h/", headers: with(login("me", "right"), map[string]string{"X-Show": "Authorization"}), body: "w / Authorization=" + login("me", "right")["Authorization"]},
		}, ""},
		{"a map", with(basic, annotations{"auth-secret-type": "auth-map", "auth-secret": "a/s"}), map[string]string{"me": string(strong) + "\n"},
			[]exchanged{{url: "http://h/", headers: login("me", "right")}, {url: "http://h/", headers: login("you", "right"), status: 401}}, ""},
		{"no Secret", basic, nil, []exchanged{{url: "http://h/", headers: login("me", "right"), status: 503}}, "does not exist"},
		{"a Secret of something else", basic, map[string]string{"x": "y"}, []exchanged{{url: "http://h/", status: 503}}, "no key auth"},
		{"an empty file lets no user in", basic, file(""), []exchanged{{url: "http://h/", headers: login("", ""), status: 401}}, ""},
		{"a user without a hash", basic, file("me:"), []exchanged{{url: "http://h/", headers: login("me", ""), status: 401}, {url: "http://h/", headers: login("me", "x"), status: 401}}, "cannot log in"},
		{"scripts of other origins see what is asked", with(basic, annotations{"enable-cors": "true"}), file(good), []exchanged{
			{url: "http://h/", status: 401, answer: map[string]string{"Access-Control-Allow-Origin": "*"}}}, ""},
		{"a hash that would use up the processors", basic, file("me:" + costly), []exchanged{{url: "http://h/", headers: login("me", "right"), status: 401}}, "cost is 31"},
		{"a form that is not known", basic, file("me:$6$x$y\nme2:plain"), []exchanged{{url: "http://h/", headers: login("me2", "plain"), status: 401}}, "cannot log in"},
		{"digest", annotations{"auth-type": "digest", "auth-secret": "s"}, file(good), []exchanged{{url: "http://h/", headers: login("me", "right"), status: 503}}, "basic alone"},
		{"no type", annotations{"auth-secret": "s"}, file(good), []exchanged{{url: "http://h/", status: 503}}, "basic alone"},
		{"no name of a Secret", annotations{"auth-type": "basic"}, nil, []exchanged{{url: "http://h/", status: 503}}, "auth-secret is missing"},
		{"another namespace", with(basic, annotations{"auth-secret": "b/s"}), file(good), []exchanged{{url: "http://h/", status: 503}}, "another namespace"},
		{"a realm that ends the header", with(basic, annotations{"auth-realm": `x", y="z`}), file(good), []exchanged{{url: "http://h/", status: 503}}, "realm"},
		{"any: the address suffices", with(basic, annotations{"satisfy": "any", "whitelist-source-range": "127.0.0.1"}), file(good), []exchanged{{url: "http://h/"}}, ""},
		{"any: the password suffices", with(basic, annotations{"satisfy": "any", "whitelist-source-range": "10.0.0.1"}), file(good),
			[]exchanged{{url: "http://h/", headers: login("me", "right")}, {url: "http://h/", status: 401}}, ""},
		{"any, without addresses", with(basic, annotations{"satisfy": "any"}), file(good), []exchanged{{url: "http://h/", status: 401}}, ""},
		{"all", with(basic, annotations{"whitelist-source-range": "10.0.0.1"}), file(good), []exchanged{{url: "http://h/", headers: login("me", "right"), status: 403}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			secrets := map[string]map[string]string{}
			if c.secret != nil {
				secrets["a/s"] = c.secret
			}
			f, r := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "coracle", c.annotations, "h/=w")}, secrets: secrets}.serve(t)
			for _, e := range c.requests {
				e.check(t, f)
			}
			if got := reasons(r); c.finding == "" && got != "" || !strings.Contains(got, c.finding) {
				t.Errorf("findings:\n%s", got)
			}
		})
	}
}

// TestChangedUsersTakeEffectAlone changes the section of the users alone, and then removes it.
func TestChangedUsersTakeEffectAlone(t *testing.T) {
	f, r := cluster{
		ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"auth-type": "basic", "auth-secret": "s"}, "h/=w")},
		secrets:   map[string]map[string]string{"a/s": {"auth": "me:{SHA}O1hAcUlX7zkBbV+/3rmbDfUlbNM="}},
	}.serve(t)
	key := table.UsersKey("a", "s", "auth-file")
	testenv.Require(t, r.Sections[key] != nil, "there is no section of users")
	exchanged{url: "http://h/", headers: login("me", "secret pass")}.check(t, f)
	f.Apply([]table.Change{section(t, key, table.Users{Hashes: map[string]string{"me": "$1$xy$sCW6WZJsSz7hVuvH0BCaf."}})})
	exchanged{url: "http://h/", headers: login("me", "secret pass"), status: http.StatusUnauthorized}.check(t, f)
	exchanged{url: "http://h/", headers: login("me", "pw")}.check(t, f)
	f.Apply([]table.Change{{Key: key, Value: json.RawMessage(`{"hashes":{},"surprise":1}`)}})
	exchanged{url: "http://h/", headers: login("me", "pw"), status: http.StatusServiceUnavailable}.check(t, f)
	f.Apply([]table.Change{{Key: key}})
	exchanged{url: "http://h/", headers: login("me", "pw"), status: http.StatusServiceUnavailable}.check(t, f)
}
