// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPodsThatUseAnObject(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		testenv.True(t, r.URL.Path == "/api/v1/namespaces/a/pods", "%s", r.URL)
		if r.URL.Query().Get("continue") == "" {
			_, _ = io.WriteString(w, `{"metadata":{"continue":"more"},"items":[{"metadata":{"name":"one"},"spec":{"serviceAccountName":"robot",
				"volumes":[{"name":"v","secret":{"secretName":"x"}},{"name":"c","persistentVolumeClaim":{"claimName":"x"}},{"name":"scratch","ephemeral":{}}],
				"containers":[{"name":"main","env":[{"name":"PASSWORD","valueFrom":{"secretKeyRef":{"name":"x","key":"k"}}}],"envFrom":[{"configMapRef":{"name":"x"}}]}]}}]}`)
			return
		}
		_, _ = io.WriteString(w, `{"items":[{"metadata":{"name":"two"},"spec":{"imagePullSecrets":[{"name":"x"}],
			"volumes":[{"name":"all","projected":{"sources":[{"configMap":{"name":"x"}}]}}]}},{"metadata":{"name":"three"},"spec":{}}]}`)
	})
	for query, want := range map[string]string{
		"resource=secrets&name=x":                          `{"pods":[{"name":"one","how":"volume v, PASSWORD of main"},{"name":"two","how":"imagePullSecrets"}],"partial":false}`,
		"resource=configmaps&name=x":                       `{"pods":[{"name":"one","how":"envFrom of main"},{"name":"two","how":"volume all"}],"partial":false}`,
		"resource=persistentvolumeclaims&name=x":           `{"pods":[{"name":"one","how":"volume c"}],"partial":false}`,
		"resource=persistentvolumeclaims&name=one-scratch": `{"pods":[{"name":"one","how":"volume scratch"}],"partial":false}`,
		"resource=serviceaccounts&name=robot":              `{"pods":[{"name":"one","how":"serviceAccountName"}],"partial":false}`,
		"resource=secrets&name=y":                          `{"pods":[],"partial":false}`,
	} {
		code, text, _ := roundTrip(t, s, "GET", "/usedby?namespace=a&"+query, "", asUser...)
		testenv.False(t, code != http.StatusOK || text != want, "%s: %d %s, want %s", query, code, text, want)
	}
	for _, bad := range []string{"", "?namespace=a&resource=secrets", "?namespace=..&resource=secrets&name=x", "?namespace=a%2Fb&resource=secrets&name=x"} {
		if code, text, _ := roundTrip(t, s, "GET", "/usedby"+bad, "", asUser...); code != http.StatusBadRequest {
			t.Errorf("%q: %d %s", bad, code, text)
		}
	}
}

func TestNextRunFollowsCronSchedule(t *testing.T) {
	s := consoleOf(t, noAPI(t))
	start := time.Now()
	code, text, _ := roundTrip(t, s, "GET", "/schedule?schedule=*/5+*+*+*+*", "", asUser...)
	var got struct{ Next time.Time }
	if err := json.Unmarshal([]byte(text), &got); err != nil || code != http.StatusOK || !got.Next.After(start) || got.Next.Minute()%5 != 0 {
		t.Errorf("%d %s, %v", code, text, err)
	}
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ schedule, zone, want string }{
		{"30 4 * * *", "", "2026-02-01T04:30:00Z"},
		{"30 4 * * *", "Asia/Tokyo", "2026-02-01T04:30:00+09:00"},
		{"@hourly", "", "2026-01-31T13:00:00Z"},
		{"0 0 30 2 *", "", ""},
		{"TZ=UTC 30 4 * * *", "", ""},
		{"TZ=UTC", "", ""},
		{"words", "", ""},
		{"30 4 * * *", "Nowhere/Else", ""},
	} {
		got, err := nextRun(c.schedule, c.zone, now)
		testenv.False(t, got != c.want || (err == nil) != (c.want != ""), "%q in %q: %q, %v", c.schedule, c.zone, got, err)
	}
}
