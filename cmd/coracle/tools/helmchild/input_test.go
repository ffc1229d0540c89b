// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/charts"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var quiet = slog.New(slog.DiscardHandler)

func asFailure(err error) *failure {
	f := &failure{}
	errors.As(err, &f)
	return f
}

// TestBadInputChangesNothing: bad input has no effect on the cluster, and each mistake has words of its own.
func TestBadInputChangesNothing(t *testing.T) {
	tt := newTester(t)
	template := func(text string) charts.Chart { return web("1.0.0").With("templates/more.yaml", text) }
	for name, bad := range map[string]struct {
		req    func(*helmjob.Request)
		chart  charts.Chart
		reason helmjob.Reason
		says   string
	}{
		"no archive":         {req: func(r *helmjob.Request) { r.Chart.Content = []byte("hello") }, reason: helmjob.InvalidChart, says: "is none"},
		"half an archive":    {req: func(r *helmjob.Request) { r.Chart.Content = r.Chart.Content[:len(r.Chart.Content)/2] }, reason: helmjob.InvalidChart, says: "is none"},
		"no Chart.yaml":      {chart: charts.Chart{"values.yaml": "a: 1"}, reason: helmjob.InvalidChart, says: "Chart.yaml"},
		"a library":          {chart: charts.New("lib", "1.0.0", "type: library"), reason: helmjob.InvalidChart, says: "library"},
		"a missing part":     {chart: charts.New("web", "1.0.0", "dependencies: [{name: mast, version: 1.0.0, repository: 'https://example.com'}]"), reason: helmjob.InvalidChart, says: "mast"},
		"another Kubernetes": {chart: charts.New("web", "1.0.0", "kubeVersion: '>=1.99'"), reason: helmjob.Incompatible, says: ">=1.99"},
		"values no YAML":     {req: func(r *helmjob.Request) { r.Values = []helmjob.Document{"a: 1", "a: [1"} }, reason: helmjob.InvalidValues, says: "2. of 2"},
		"values no map":      {req: func(r *helmjob.Request) { r.Values = []helmjob.Document{"- 1"} }, reason: helmjob.InvalidValues, says: "no map"},
		"a bad path":         {req: func(r *helmjob.Request) { r.Set = map[string]intstr.IntOrString{"a[x]": intstr.FromInt32(1)} }, reason: helmjob.InvalidValues, says: "a[x]"},
		"no schema's values": {
			chart:  web("1.0.0").With("values.schema.json", `{"properties":{"greeting":{"type":"integer"}}}`),
			reason: helmjob.InvalidValues, says: "greeting",
		},
		"a template's syntax": {chart: template("{{ if }}"), reason: helmjob.RenderFailed, says: "more.yaml"},
		"a template's word":   {chart: template(`{{ fail "give me a sail" }}`), reason: helmjob.RenderFailed, says: "give me a sail"},
		"no object":           {chart: template("kind: [\n"), reason: helmjob.RenderFailed, says: "more.yaml"},
		"an unknown kind":     {chart: template("apiVersion: example.com/v1\nkind: Sail\nmetadata: {name: more}\n"), reason: helmjob.RenderFailed, says: "Sail"},
		"a policy":            {req: func(r *helmjob.Request) { r.FailurePolicy = "maybe" }, reason: helmjob.BadRequest, says: "maybe"},
		"a release's name":    {req: func(r *helmjob.Request) { r.Release = "Web_1" }, reason: helmjob.BadRequest, says: "Web_1"},
		"no chart":            {req: func(r *helmjob.Request) { r.Chart = helmjob.Chart{} }, reason: helmjob.BadRequest, says: "no chart"},
		"no socket":           {req: func(r *helmjob.Request) { r.Socket = "" }, reason: helmjob.BadRequest, says: "socket"},
	} {
		t.Run(name, func(t *testing.T) {
			tt := &tester{T: t, ns: tt.ns, log: tt.log}
			if bad.chart == nil {
				bad.chart = web("1.0.0")
			}
			req := tt.request(bad.chart)
			if bad.req != nil {
				bad.req(req)
			}
			r := tt.do(req, "", bad.reason)
			tt.says(r, bad.says)
			testenv.True(t, r.Release == nil, "there is a release: %+v", r.Release)
		})
	}
	tt.wantGreeting("web", "")
}

func TestValuesAndSetAreMerged(t *testing.T) {
	text := func(s string) intstr.IntOrString { return intstr.FromString(s) }
	values, err := mergeValues(&helmjob.Request{
		Values: []helmjob.Document{"a: {b: 1, c: [1, 2]}\n---\nd: e", "a: {c: [3], f: null}"},
		Set: map[string]intstr.IntOrString{
			"a.b": intstr.FromInt32(2), "g": text("1"), "h": text("true"), "i": text("null"), "d": text("x,y=z"), "j[0].k": text(`a\,b`), "l": text(""),
		},
	})
	testenv.NoError(t, err)
	got, err := yaml.Marshal(values)
	want := "a:\n  b: 2\n  c:\n  - 3\n  f: null\nd: x,y=z\ng: \"1\"\nh: true\ni: null\nj:\n- k: a,b\nl: \"\"\n"
	testenv.False(t, err != nil || string(got) != want, "%v, values:\n%swant:\n%s", err, got, want)
}

func FuzzValues(f *testing.F) {
	f.Add("a: 1\n---\nb: {c: [1]}", "a.b[2].c", "x,y=z")
	f.Add("- 1", "a[", "{1,2")
	f.Add("a: &x [*x]", "a=b", "null")
	f.Fuzz(func(t *testing.T, doc, path, value string) {
		if len(path) > 64 { // helm makes lists as long as an index says, up to 65536 for each
			return
		}
		req := &helmjob.Request{Values: []helmjob.Document{helmjob.Document(doc)}, Set: map[string]intstr.IntOrString{path: intstr.FromString(value)}}
		values, err := mergeValues(req)
		if err != nil {
			testenv.True(t, asFailure(err).reason == helmjob.InvalidValues, "failed with %v", err)
			return
		}
		if _, err := digest(req, &source{}, values); err != nil && asFailure(err).reason != helmjob.InvalidValues {
			t.Errorf("failed with %v", err)
		}
	})
}

func FuzzChart(f *testing.F) {
	f.Add(web("1.0.0").Archive())
	f.Add([]byte("hello"))
	f.Fuzz(func(_ *testing.T, archive []byte) {
		ch, err := loader.LoadArchive(bytes.NewReader(archive))
		if err == nil {
			_ = ch.Validate() // neither may panic
		}
	})
}
