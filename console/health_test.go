// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// healthAPI answers lists by their paths. Each item is an object's name and its JSON without metadata. The objects are
// an hour old, but for those whose name begins with "young".
func healthAPI(t *testing.T, lists map[string][]string) http.HandlerFunc {
	t.Helper()
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if selector := r.URL.Query().Get("labelSelector"); selector != "" {
			path += "?" + selector
		}
		list, found := lists[path]
		if !found {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		items := make([]string, len(list))
		for i, text := range list {
			name, rest, _ := strings.Cut(text, " ")
			created := time.Now().Add(-time.Hour)
			if strings.HasPrefix(name, "young") {
				created = time.Now()
			}
			if strings.HasPrefix(rest, `{"labels"`) || strings.HasPrefix(rest, `{"ownerReferences"`) || strings.HasPrefix(rest, `{"deletionTimestamp"`) {
				more, body, _ := strings.Cut(rest, " ")
				items[i] = object(name, created, ","+strings.TrimSuffix(strings.TrimPrefix(more, "{"), "}"), body)
				continue
			}
			items[i] = object(name, created, "", rest)
		}
		_, _ = fmt.Fprintf(w, `{"kind":"List","metadata":{},"items":[%s]}`, strings.Join(items, ","))
	}
}

func object(name string, created time.Time, more, body string) string {
	meta := fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"a","uid":"%s","creationTimestamp":%q,"managedFields":[{"manager":"x"}]%s}`,
		name, name, created.UTC().Format(time.RFC3339), more)
	if body == "" || body == "{}" {
		return meta + "}"
	}
	return meta + "," + strings.TrimPrefix(body, "{")
}

// checkOf has a console check lists, and returns its findings in words.
func checkOf(t *testing.T, api http.HandlerFunc, paths ...string) (map[string]string, healthResponse) {
	t.Helper()
	s := consoleOf(t, api, func(o *Options) { o.healthTimeout = time.Hour }) // however busy the machine is
	body := testenv.Must(json.Marshal(map[string]any{"paths": paths}))(t)
	code, text, _ := roundTrip(t, s, "POST", "/health", string(body), "Authorization", bearer)
	testenv.Equal(t, code, http.StatusOK, "%s:", text)
	var out healthResponse
	testenv.NoError(t, json.Unmarshal([]byte(text), &out))
	found := map[string]string{}
	for _, f := range out.Findings {
		resource := f.Path[strings.LastIndex(f.Path, "/")+1:]
		found[resource+"/"+f.Name] += strings.TrimSpace(fmt.Sprintf("%s %s %d/%d %s", f.What, f.About, f.Have, f.Want, f.Text))
		if f.Passing {
			found[resource+"/"+f.Name] += " (passing)"
		}
	}
	return found, out
}

func pathsOf(lists map[string][]string) (out []string) {
	for path := range lists {
		if !strings.Contains(path, "?") {
			out = append(out, path)
		}
	}
	return out
}

// TestHealthFindsWhatIsWrong has an object of each kind that has not what it wants, and some that have.
func TestHealthFindsWhatIsWrong(t *testing.T) {
	const apps, gateway = "/apis/apps/v1/", "/apis/gateway.networking.k8s.io/v1/"
	failed := `"conditions":[{"type":"ReplicaFailure","status":"True","reason":"FailedCreate","message":"exceeded quota"}]`
	lists := map[string][]string{
		"/api/v1/nodes": {
			`full {"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"DiskPressure","status":"True","message":"disk"}]}}`,
			`fine {"status":{"conditions":[{"type":"EtcdIsVoter","status":"True"},{"type":"MemoryPressure","status":"False"}]}}`,
		},
		"/api/v1/persistentvolumes": {`v {"status":{"phase":"Failed","message":"no plugin"}}`, `w {"status":{"phase":"Bound"}}`},
		apps + "daemonsets":         {`d {"status":{"desiredNumberScheduled":2,"numberReady":0}}`, `young {"status":{"desiredNumberScheduled":2}}`},
		apps + "deployments": {
			`quota {"spec":{"replicas":2},"status":{` + failed + `}}`,
			`stuck {"spec":{"replicas":1},"status":{"readyReplicas":1,"conditions":[{"type":"Progressing","status":"False","message":"deadline"}]}}`,
			`fine {"status":{"readyReplicas":1}}`, `off {"spec":{"replicas":0}}`,
		},
		apps + "replicasets": {
			`bare {"spec":{"replicas":2},"status":{"readyReplicas":1}}`,
			`owned {"ownerReferences":[{"kind":"Deployment","name":"x","controller":true}]} {"spec":{"replicas":2}}`,
		},
		"/apis/batch/v1/jobs": {
			`failed {"status":{"failed":3,"conditions":[{"type":"Failed","status":"True","message":"backoff limit"}]}}`,
			`idle {}`, `again {"status":{"failed":1}}`, `runs {"status":{"active":1}}`, `rests {"spec":{"suspend":true}}`,
			`done {"status":{"succeeded":1,"conditions":[{"type":"Complete","status":"True"}]}}`,
			`nightly-1 {"ownerReferences":[{"kind":"CronJob","name":"nightly","controller":true}]} {"status":{"conditions":[{"type":"Failed","status":"True","message":"no disk"}]}}`,
		},
		"/apis/autoscaling/v2/horizontalpodautoscalers": {
			`h {"status":{"conditions":[{"type":"ScalingActive","status":"False","reason":"FailedGetResourceMetric","message":"no request"}]}}`,
			`off {"status":{"conditions":[{"type":"ScalingActive","status":"False","reason":"ScalingDisabled"}]}}`,
		},
		"/apis/policy/v1/poddisruptionbudgets": {
			`low {"spec":{"selector":{"matchLabels":{"app":"x"}}},"status":{"expectedPods":3,"currentHealthy":1,"desiredHealthy":2}}`,
			`none {"status":{"expectedPods":0}}`, `fine {"status":{"expectedPods":3,"currentHealthy":3,"desiredHealthy":2}}`,
		},
		"/api/v1/services": {
			`web {"spec":{"selector":{"app":"web"},"ports":[{"port":80,"name":"http"}]}}`, `empty {"spec":{"selector":{"app":"no"},"ports":[{"port":80}]}}`,
			`manual {"spec":{}}`, `outside {"spec":{"type":"ExternalName","externalName":"x"}}`, `young {"spec":{"selector":{"app":"no"}}}`,
			`guard {"spec":{"selector":{"app":"guard"}}}`,
			`lb {"spec":{"type":"LoadBalancer"}}`,
		},
		"/apis/discovery.k8s.io/v1/endpointslices": {
			`s1 {"labels":{"kubernetes.io/service-name":"web"}} {"endpoints":[{"conditions":{"ready":false}},{"conditions":{}}]}`,
			`s2 {"labels":{"kubernetes.io/service-name":"empty"}} {"endpoints":null}`,
		},
		"/apis/networking.k8s.io/v1/ingresses": {
			`good {"spec":{"defaultBackend":{"service":{"name":"web","port":{"name":"http"}}}}}`,
			`lost {"spec":{"rules":[{"http":{"paths":[{"backend":{"service":{"name":"nothing","port":{"number":80}}}}]}}]}}`,
			`port {"spec":{"defaultBackend":{"service":{"name":"web","port":{"number":81}}}}}`,
		},
		"/apis/apiregistration.k8s.io/v1/apiservices": {
			`v1.gone {"status":{"conditions":[{"type":"Available","status":"False","message":"no endpoints"}]}}`,
		},
		"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations": {
			`strict {"webhooks":[{"name":"x","clientConfig":{"service":{"namespace":"a","name":"guard"}}}]}`,
			`lax {"webhooks":[{"name":"x","failurePolicy":"Ignore","clientConfig":{"service":{"namespace":"a","name":"guard"}}}]}`,
			`hidden {"webhooks":[{"name":"x","clientConfig":{"service":{"namespace":"b","name":"hidden"}}}]}`,
			`url {"webhooks":[{"name":"x","clientConfig":{"url":"https://x"}}]}`,
		},
		"/apis/discovery.k8s.io/v1/namespaces/a/endpointslices?kubernetes.io/service-name=guard": {},
		gateway + "gateways": {
			`listener {"status":{"conditions":[{"type":"Accepted","status":"True"}],"listeners":[{"name":"l","conditions":[{"type":"ResolvedRefs","status":"False","message":"no secret"}]}]}}`,
			`alone {}`,
		},
		gateway + "httproutes": {
			`bad {"status":{"parents":[{"conditions":[{"type":"Accepted","status":"True"},{"type":"ResolvedRefs","status":"False","message":"no service"}]}]}}`,
			`good {"status":{"parents":[{"conditions":[{"type":"Accepted","status":"True"}]}]}}`,
		},
		"/apis/example.com/v1/gears": {
			`worn {"status":{"conditions":[{"type":"Ready","status":"False","message":"worn"}]}}`,
			`odd {"spec":"text","status":{"conditions":[7,{"type":"Ready","status":"Unknown","reason":"Waiting"}]}}`,
			`good {"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, `text {"status":"fine"}`,
			`gone {"deletionTimestamp":"2026-01-01T00:00:00Z","finalizers":["example.com/never"]} {}`,
		},
	}
	found, out := checkOf(t, healthAPI(t, lists), pathsOf(lists)...)
	want := map[string]string{
		"nodes/full": "condition DiskPressure 0/0 disk", "persistentvolumes/v": "condition Failed 0/0 no plugin",
		"daemonsets/d": "unavailable  0/2", "deployments/quota": "cannotMake  0/2 exceeded quota", "deployments/stuck": "stuck  0/0 deadline",
		"replicasets/bare": "unavailable  1/2 (passing)", "jobs/failed": "jobFailed  0/0 backoff limit", "jobs/idle": "jobIdle  0/0",
		"jobs/again": "jobRetries  1/0 (passing)", "cronjobs/nightly": "lastRun nightly-1 0/0 no disk",
		"horizontalpodautoscalers/h": "scaling ScalingActive 0/0 no request", "poddisruptionbudgets/low": "budget  1/2 (passing)",
		"poddisruptionbudgets/none": "budgetEmpty  0/0 (passing)", "services/empty": "endpoints  0/0 (passing)", "services/lb": "noAddress  0/0 (passing)",
		"ingresses/lost": "backend nothing 0/0", "ingresses/port": "backendPort web 0/0 81", "apiservices/v1.gone": "condition Available 0/0 no endpoints",
		"validatingwebhookconfigurations/strict": "webhook a/guard 0/0", "validatingwebhookconfigurations/lax": "webhook a/guard 0/0 (passing)",
		"gateways/listener": "condition ResolvedRefs 0/0 no secret", "gateways/alone": "ignored  0/0 (passing)",
		"httproutes/bad": "condition ResolvedRefs 0/0 no service", "gears/worn": "condition Ready 0/0 worn",
		"gears/odd": "condition Ready 0/0 Waiting (passing)", "gears/gone": "deleting [example.com/never] 0/0 (passing)",
	}
	for object, text := range want {
		testenv.Equal(t, found[object], text, "%s:", object)
		delete(found, object)
	}
	testenv.True(t, len(found) == 0, "it finds also %v", found)
	for _, k := range out.Kinds {
		testenv.Equal(t, k.Ready, strings.HasSuffix(k.Path, "/gears"), "%s has the condition Ready:", k.Path)
		testenv.False(t, k.More || k.Error != "", "%+v", k)
	}
	passing := false
	for i, f := range out.Findings {
		testenv.False(t, passing && !f.Passing, "finding %d of %v is not sorted", i, out.Findings)
		passing = f.Passing
	}

	// What depends on a list that cannot be read is not found: an Ingress has no lack of a Service that cannot be seen.
	for _, path := range []string{"/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"} {
		part := map[string][]string{"/apis/networking.k8s.io/v1/ingresses": lists["/apis/networking.k8s.io/v1/ingresses"]}
		part[path] = lists[path]
		paths := append(pathsOf(part), "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices")
		found, out = checkOf(t, healthAPI(t, part), paths...)
		testenv.True(t, found["services/empty"] == "" && (found["ingresses/lost"] != "") == (path == "/api/v1/services"), "with %s: %v", path, found)
		testenv.True(t, strings.Contains(fmt.Sprint(out.Kinds), "403"), "%v", out.Kinds)
	}
}

// TestHealthTakesTheLastRun: a CronJob's older runs say nothing of it.
func TestHealthTakesTheLastRun(t *testing.T) {
	owner := `{"ownerReferences":[{"kind":"CronJob","name":"nightly","controller":true}]} `
	failed, done := `{"status":{"conditions":[{"type":"Failed","status":"True"}]}}`, `{"status":{"conditions":[{"type":"Complete","status":"True"}]}}`
	for want, list := range map[int][]string{
		0: {"young " + owner + done, "older " + owner + failed}, 1: {"older " + owner + done, "young " + owner + failed},
	} {
		found, _ := checkOf(t, healthAPI(t, map[string][]string{"/apis/batch/v1/jobs": list}), "/apis/batch/v1/jobs")
		testenv.Equal(t, len(found), want, "%v:", found)
	}
}

// TestHealthIsBounded: neither a kind with many objects nor many findings make a check long, and the page learns of it.
// What is no list of the API's is not asked for.
func TestHealthIsBounded(t *testing.T) {
	items := make([]string, pageSize)
	for i := range items {
		text := "x"
		if i == 0 { // the first finding: long texts of all would take a slow machine longer than a check may take
			text = strings.Repeat(text, 2*maxFindingText)
		}
		items[i] = fmt.Sprintf(`{"metadata":{"name":"g%03d","creationTimestamp":"2026-01-01T00:00:00Z"},"status":{"conditions":[{"type":"Ready","status":"False","message":%q}]}}`, i, text)
	}
	page := `{"metadata":{"continue":"more"},"items":[` + strings.Join(items, ",") + `]}`
	var asked, now, most atomic.Int64
	api := func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		if r.URL.Path == "/api/v1/broken" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		testenv.Equal(t, r.URL.Query().Get("limit"), "500", "the limit of %s:", r.URL)
		_, _ = w.Write([]byte(page))
	}
	_, out := checkOf(t, api, "/apis/example.com/v1/gears", "/api/v1/services", "/api/v1/broken", "/api/v1/namespaces/a/pods/b/log",
		"/api/v1/namespaces/a", "/metrics", "/api/v1/namespaces/a/services/b/proxy")
	testenv.True(t, len(out.Findings) == maxFindings && out.Full, "%d findings", len(out.Findings))
	testenv.Equal(t, len(out.Findings[0].Text), maxFindingText, "a text's length")
	for i, want := range []checkedKind{{Objects: maxCustom, More: true, Ready: true}, {Objects: maxChecked, More: true}, {Code: 503}, {Code: 400}, {Code: 400}, {Code: 400}, {Code: 400}} {
		got := out.Kinds[i]
		testenv.True(t, got.Objects == want.Objects && got.More == want.More && got.Ready == want.Ready && got.Code == want.Code && (got.Error != "") == (want.Code != 0), "%+v", got)
	}
	testenv.Equal(t, asked.Load(), maxCustom/pageSize+maxChecked/pageSize+1, "requests")
	testenv.False(t, most.Load() > healthRequests, "%d requests at once", most.Load())

	s := consoleOf(t, noAPI(t))
	body := `{"paths":[` + strings.Repeat(`"/api/v1/pods",`, maxHealthPaths) + `"/api/v1/pods"]}`
	code, text, _ := roundTrip(t, s, "POST", "/health", body, "Authorization", bearer)
	testenv.Equal(t, code, http.StatusBadRequest, "%s:", text)
	s = consoleOf(t, api, func(o *Options) { o.ReadOnly = true })
	code, text, _ = roundTrip(t, s, "POST", "/health", `{"paths":[]}`, "Authorization", bearer)
	testenv.Equal(t, code, http.StatusOK, "a console that changes nothing: %s", text)
	code, _, _ = roundTrip(t, s, "POST", "/health", body)
	testenv.Equal(t, code, http.StatusUnauthorized, "without a login")
}

// TestLargeObjectsHideNothing: objects that are too large for one response together are read in smaller pages, and
// their texts are cut before they are kept.
func TestLargeObjectsHideNothing(t *testing.T) {
	const path, objects = "/apis/x.io/v1/things", 40
	long := strings.Repeat("x", 1<<20)
	_, out := checkOf(t, func(w http.ResponseWriter, r *http.Request) {
		from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		to, more := min(from+limit, objects), ""
		if to < objects {
			more = strconv.Itoa(to)
		}
		_, _ = fmt.Fprintf(w, `{"metadata":{"continue":%q},"items":[`, more)
		for i := from; i < to; i++ {
			_, _ = fmt.Fprint(w, object(fmt.Sprint("o", i), time.Now().Add(-time.Hour), "",
				`{"status":{"conditions":[{"type":"Ready","status":"False","message":"`+long+`"}]}}`))
			if i < to-1 {
				_, _ = fmt.Fprint(w, ",")
			}
		}
		_, _ = fmt.Fprint(w, "]}")
	}, path)
	testenv.Equal(t, fmt.Sprint(len(out.Findings), out.Kinds), fmt.Sprintf("%d [{%s %d true false 0 }]", objects, path, objects), "findings")

	c := newCheck(time.Now())
	c.add(finding{}, "condition", false, aboutName(long), withText(long))
	testenv.Equal(t, len(c.findings[0].Text)+len(c.findings[0].About), 2*maxFindingText, "the bytes that are kept")
	for range 2 * maxGathered {
		c.add(finding{}, "condition", false)
	}
	testenv.Equal(t, len(c.findings), maxGathered, "the findings that are kept")
}
