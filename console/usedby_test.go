// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUsersOfAnObjectAreFound: in pods, in what makes pods though it has none now, and in what names a certificate.
func TestUsersOfAnObjectAreFound(t *testing.T) {
	lists := map[string]string{
		"/api/v1/namespaces/a/pods?continue=more&limit=500": `{"items":[{"metadata":{"name":"two"},"spec":{"imagePullSecrets":[{"name":"x"}],
			"volumes":[{"name":"all","projected":{"sources":[{"configMap":{"name":"x"}}]}}]}},{"metadata":{"name":"three"},"spec":{}}]}`,
		"/api/v1/namespaces/a/pods?limit=500": `{"metadata":{"continue":"more"},"items":[{"metadata":{"name":"one"},"spec":{"serviceAccountName":"robot",
			"volumes":[{"name":"v","secret":{"secretName":"x"}},{"name":"c","persistentVolumeClaim":{"claimName":"x"}},{"name":"scratch","ephemeral":{}}],
			"containers":[{"name":"main","env":[{"name":"PASSWORD","valueFrom":{"secretKeyRef":{"name":"x","key":"k"}}}],"envFrom":[{"configMapRef":{"name":"x"}}]}]}}]}`,
		"/apis/apps/v1/namespaces/a/deployments?limit=500": `{"items":[{"metadata":{"name":"idle"},"spec":{"replicas":0,"template":{"spec":{
			"volumes":[{"name":"v","configMap":{"name":"x"}}]}}}}]}`,
		"/apis/apps/v1/namespaces/a/replicasets?limit=500": `{"items":[{"metadata":{"name":"idle-1","ownerReferences":[{"controller":true}]},"spec":{"template":{"spec":{
			"volumes":[{"name":"v","configMap":{"name":"x"}}]}}}}]}`,
		"/apis/apps/v1/namespaces/a/statefulsets?limit=500": `{"items":[{"metadata":{"name":"db"},"spec":{"volumeClaimTemplates":[{"metadata":{"name":"data"}}]}}]}`,
		"/apis/batch/v1/namespaces/a/cronjobs?limit=500": `{"items":[{"metadata":{"name":"nightly"},"spec":{"jobTemplate":{"spec":{"template":{"spec":{
			"serviceAccountName":"robot"}}}}}}]}`,
		"/apis/networking.k8s.io/v1/namespaces/a/ingresses?limit=500": `{"items":[{"metadata":{"name":"site"},"spec":{"tls":[{"secretName":"x"}]}}]}`,
		"/apis/gateway.networking.k8s.io/v1/namespaces/a/gateways?limit=500": `{"items":[{"metadata":{"name":"gw","namespace":"a"},"spec":{"listeners":[
			{"name":"https","tls":{"certificateRefs":[{"name":"x"},{"name":"x","namespace":"b"}]}}]}}]}`,
		"/api/v1/namespaces/a/serviceaccounts?limit=500": `{"items":[{"metadata":{"name":"puller"},"imagePullSecrets":[{"name":"x"}]}]}`,
	}
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "daemonsets") {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"kind":"Status","reason":"Forbidden","code":403}`)
			return
		}
		_, _ = io.WriteString(w, cmp.Or(lists[r.URL.String()], `{"items":[]}`))
	})
	for query, want := range map[string]string{
		"resource=secrets&name=x":                          "pods one: volume v, PASSWORD of main; pods two: imagePullSecrets; ingresses.networking.k8s.io site: tls; gateways.gateway.networking.k8s.io gw: listener https; serviceaccounts puller: imagePullSecrets",
		"resource=configmaps&name=x":                       "deployments.apps idle: volume v; pods one: envFrom of main; pods two: volume all",
		"resource=persistentvolumeclaims&name=x":           "pods one: volume c",
		"resource=persistentvolumeclaims&name=one-scratch": "pods one: volume scratch",
		"resource=persistentvolumeclaims&name=data-db-11":  "statefulsets.apps db: claim template data",
		"resource=persistentvolumeclaims&name=data-db-x":   "",
		"resource=serviceaccounts&name=robot":              "cronjobs.batch nightly: serviceAccountName; pods one: serviceAccountName",
		"resource=secrets&name=y":                          "",
	} {
		code, text, _ := roundTrip(t, s, "GET", "/usedby?namespace=a&"+query, "", asUser...)
		var got usedByResponse
		testenv.NoError(t, json.Unmarshal([]byte(text), &got), "%d %s", code, text)
		var users []string
		for _, u := range got.Users {
			users = append(users, fmt.Sprintf("%s %s: %s", u.Resource, u.Name, u.How))
		}
		testenv.Equal(t, strings.Join(users, "; "), want, "%s is used by", query)
		testenv.True(t, slices.Equal(got.Hidden, []string{"daemonsets.apps"}) && len(got.Partial) == 0, "%s: hidden are %q, partial are %q", query, got.Hidden, got.Partial)
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
