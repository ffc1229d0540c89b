// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestUsageOfPodsAndNodes(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.RequestURI() {
		case "/apis/metrics.k8s.io/v1beta1/namespaces/a/pods":
			_, _ = io.WriteString(w, `{"kind":"PodMetricsList","metadata":{},"items":[
				{"metadata":{"name":"one","namespace":"a","labels":{"x":"y"}},"timestamp":"x","window":"9s","containers":[{"name":"main","usage":{"cpu":"1283234n","memory":"528Ki"}}]},
				{"metadata":{"name":"two","namespace":"a"},"containers":[{"name":"main","usage":{"cpu":"1","memory":"1Mi"}},{"name":"side","usage":{"cpu":"500m","memory":"1Ki"}}]},
				{"metadata":{"name":"none","namespace":"a"},"containers":[]}]}`)
		case "/apis/metrics.k8s.io/v1beta1/namespaces/a/pods/one":
			_, _ = io.WriteString(w, `{"metadata":{"name":"one","namespace":"a"},"containers":[{"name":"main","usage":{"cpu":"1","memory":"1"}}]}`)
		case "/apis/metrics.k8s.io/v1beta1/namespaces/a/pods?labelSelector=app%3Dweb":
			_, _ = io.WriteString(w, `{"items":[{"metadata":{"name":"one","namespace":"a"},"containers":[{"name":"main","usage":{"cpu":"1","memory":"1"}}]}]}`)
		case "/apis/metrics.k8s.io/v1beta1/pods":
			_, _ = io.WriteString(w, `{"items":null}`)
		case "/apis/metrics.k8s.io/v1beta1/nodes":
			_, _ = io.WriteString(w, `{"items":[{"metadata":{"name":"n"},"usage":{"cpu":"250m","memory":"2Gi"}}]}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"kind":"Status","message":"not here","code":404}`)
		}
	})
	for query, want := range map[string]string{
		"resource=pods&namespace=a": `{"use":{"a/none":[0,0],"a/one":[1.3,540672],"a/two":[1500,1049600]},` +
			`"each":{"a/two":{"main":[1000,1048576],"side":[500,1024]}}}`,
		"resource=pods&namespace=a&labelSelector=app%3Dweb": `{"use":{"a/one":[1000,1]},"each":{"a/one":{"main":[1000,1]}}}`,
		"resource=pods&namespace=a&name=one":                `{"use":{"a/one":[1000,1]},"each":{"a/one":{"main":[1000,1]}}}`,
		"resource=pods":                                     `{"use":{}}`,
		"resource=pods&namespace=b":                         `{"use":{},"failed":404}`,
		"resource=nodes":                                    `{"use":{"n":[250,2147483648]}}`,
	} {
		code, text, _ := roundTrip(t, s, "GET", "/usage?"+query, "", asUser...)
		testenv.False(t, code != http.StatusOK || text != want, "%s: %d %s, want %s", query, code, text, want)
	}
	for query, want := range map[string]int{
		"": 400, "resource=secrets": 400, "resource=nodes&namespace=a": 400, "resource=pods&namespace=a%2Fb": 400, "resource=pods&namespace=..": 400,
		"resource=pods&namespace=a&name=..": 400, "resource=pods&name=a": 400,
	} {
		code, text, _ := roundTrip(t, s, "GET", "/usage?"+query, "", asUser...)
		testenv.True(t, code == want, "%q: %d %s", query, code, text)
	}
}

// TestRowsSayWhatIsReserved: the amounts are upstream's, by its rules for init containers, sidecars, resources of the
// pod itself, and overhead.
func TestRowsSayWhatIsReserved(t *testing.T) {
	const one = `"containers":[{"name":"web","resources":{"requests":{"cpu":"100m","memory":"64Mi"},"limits":{"memory":"128Mi"}}}]`
	for text, want := range map[string]string{
		`{"kind":"Pod","spec":{` + one + `}}`:                                                                `[100,67108864,0,134217728]`,
		`{"kind":"Pod","spec":{"containers":[{"name":"web"}]}}`:                                              `[0,0,0,0]`,
		`{"kind":"Pod","spec":{` + one + `},"status":{"phase":"Succeeded"}}`:                                 `null`,
		`{"kind":"Pod","spec":{"containers":"none"}}`:                                                        `null`,
		`{"kind":"Pod","spec":7,"status":[]}`:                                                                `null`,
		`{"kind":"PartialObjectMetadata","metadata":{"name":"a"}}`:                                           `null`,
		`{"kind":"Node","status":{"allocatable":{"cpu":"2","memory":"1Ki","pods":"110"}}}`:                   `[2000,1024,110]`,
		`{"kind":"Node","status":{"capacity":{"cpu":"1","memory":"2Ki","pods":"5"}}}`:                        `[1000,2048,5]`,
		`{"kind":"Node","status":{}}`:                                                                        `null`,
		`{"kind":"Pod","spec":{"overhead":{"cpu":"10m"},` + one + `}}`:                                       `[110,67108864,0,134217728]`,
		`{"kind":"Pod","spec":{"resources":{"requests":{"cpu":"1"},"limits":{"memory":"1Gi"}},` + one + `}}`: `[1000,67108864,0,1073741824] {"":[0,1073741824],"web":[0,134217728]}`,
		// an init container counts where it needs more than all that come after it
		`{"kind":"Pod","spec":{"initContainers":[{"name":"init","resources":{"requests":{"cpu":"2"},"limits":{"memory":"1Gi"}}}],` + one + `}}`: `[2000,67108864,0,1073741824] {"web":[0,134217728]}`,
		// a sidecar counts beside them; what has no limit bounds no sum
		`{"kind":"Pod","spec":{"initContainers":[{"name":"side","restartPolicy":"Always","resources":{"requests":{"cpu":"50m"}}}],` + one + `}}`: `[150,67108864,0,134217728] {"side":[0,0],"web":[0,134217728]}`,
	} {
		var o rowObject
		testenv.NoError(t, json.Unmarshal([]byte(text), &o), "%s", text)
		use, limits := o.requestsAndLimits()
		got := string(testenv.Must(json.Marshal(use))(t))
		if limits != nil {
			got += " " + string(testenv.Must(json.Marshal(limits))(t))
		}
		testenv.True(t, got == want, "%s has %s, want %s", strings.TrimSpace(text), got, want)
	}
}
