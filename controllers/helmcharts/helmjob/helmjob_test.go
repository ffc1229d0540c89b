// SPDX-License-Identifier: Apache-2.0

package helmjob_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMain makes this binary a child that behaves as its request's namespace says.
func TestMain(m *testing.M) {
	if os.Args[0] == helmjob.Name {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

func child() int {
	in := bufio.NewReader(os.Stdin)
	req := &helmjob.Request{}
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, req)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	switch req.Namespace {
	case "nonsense":
		fmt.Fprintln(os.Stderr, "I cannot go on")
		fmt.Println("{")
		return 1
	case "endless":
		for err == nil {
			_, err = os.Stdout.WriteString(strings.Repeat("more ", 1000))
		}
		return 1
	case "hang":
		fmt.Fprintln(os.Stderr, "I hang")
		_, _ = io.Copy(io.Discard, in) // until the parent is gone
		return 1
	}
	text, _ := json.Marshal(&helmjob.Result{Action: helmjob.Installed, Message: string(req.Values[0])})
	_, _ = os.Stdout.Write(text)
	return 0
}

func runner(t *testing.T) (helmjob.Runner, *bytes.Buffer) {
	t.Helper()
	program := testenv.Must(os.Executable())(t)
	log := &bytes.Buffer{}
	return helmjob.Runner{Program: program, Log: log}, log
}

func request(namespace string) *helmjob.Request {
	// More than a pipe holds.
	return &helmjob.Request{
		Operation: helmjob.Apply, Seal: []byte("seal"), Socket: "s", Namespace: namespace, Release: "web", Timeout: time.Minute,
		Chart: helmjob.Chart{Content: bytes.Repeat([]byte("chart"), 100_000)}, Values: []helmjob.Document{"a: <b>\n"},
	}
}

func TestRunReturnsChildsResultOrFailure(t *testing.T) {
	r, _ := runner(t)
	got, err := r.Run(t.Context(), request("default"))
	testenv.False(t, err != nil || got.Failed() || got.Action != helmjob.Installed || got.Message != "a: <b>\n", "%v, %+v", err, got)

	r, log := runner(t)
	_, err = r.Run(t.Context(), request("nonsense"))
	if err == nil || !strings.Contains(err.Error(), "I cannot go on") || log.String() != "I cannot go on\n" {
		t.Errorf("of a child that breaks: %v, its log is %q", err, log)
	}

	r, _ = runner(t)
	r.Program += "-none"
	testenv.WantError(t, testenv.Err(r.Run(t.Context(), request("default"))), r.Program)

	r, _ = runner(t)
	testenv.WantError(t, testenv.Err(r.Run(t.Context(), request("endless"))), "more than")

	req := request("default")
	req.Release = ""
	if got, err := r.Run(t.Context(), req); err != nil || got.Reason != helmjob.BadRequest {
		t.Errorf("of a request without a release: %v, %+v", err, got)
	}
}

// cancelOnWrite cancels its context when the child has said something.
type cancelOnWrite struct{ cancel context.CancelCauseFunc }

func (h cancelOnWrite) Write(p []byte) (int, error) {
	h.cancel(fmt.Errorf("the term is over"))
	return len(p), nil
}

func TestStalledChildEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	r, _ := runner(t)
	r.Log = cancelOnWrite{cancel}
	testenv.WantError(t, testenv.Err(r.Run(ctx, request("hang"))), "the term is over")
}

func TestInvalidRequestIsRefused(t *testing.T) {
	for name, change := range map[string]func(*helmjob.Request){
		"operation":  func(r *helmjob.Request) { r.Operation = "sail" },
		"socket":     func(r *helmjob.Request) { r.Socket = "" },
		"namespace":  func(r *helmjob.Request) { r.Namespace = "" },
		"release":    func(r *helmjob.Request) { r.Release = "" },
		"seal":       func(r *helmjob.Request) { r.Seal = nil },
		"timeout":    func(r *helmjob.Request) { r.Timeout = -1 },
		"chart":      func(r *helmjob.Request) { r.Chart = helmjob.Chart{Repo: "https://example.com"} },
		"policy":     func(r *helmjob.Request) { r.FailurePolicy = "maybe" },
		"serverSide": func(r *helmjob.Request) { r.ServerSide = "maybe" },
		"shown":      func(r *helmjob.Request) { r.Operation = helmjob.RollBack },
	} {
		r := request("default")
		testenv.NoError(t, r.Validate())
		change(r)
		testenv.Fails(t, r.Validate(), "a bad %s is taken", name)
	}
	testenv.Check(t, (&helmjob.Request{Operation: helmjob.Uninstall, Seal: []byte("seal"), Socket: "s", Namespace: "n",
		Release: "r"}).Validate(), "uninstalling")
}

func TestStaticChartURLIsLocalFile(t *testing.T) {
	for _, tt := range []struct {
		chart helmjob.Chart
		want  string
		ok    bool
	}{
		{helmjob.Chart{Name: "https://%{KUBERNETES_API}%/static/charts/web-1.0.0.tgz"}, "web-1.0.0.tgz", true},
		{helmjob.Chart{Name: "https://%{KUBERNETES_API}%/static/charts/a/web.tgz"}, "a/web.tgz", true},
		{helmjob.Chart{Name: "https://%{KUBERNETES_API}%/static/charts/../../../etc/shadow"}, "etc/shadow", true},
		{helmjob.Chart{Name: "https://%{KUBERNETES_API}%/static/charts/"}, "", false},
		{helmjob.Chart{Name: "web.tgz"}, "web.tgz", true},
		{helmjob.Chart{Name: "../web.tgz"}, "web.tgz", true},
		{helmjob.Chart{Name: "web.tgz", Repo: "https://example.com"}, "", false},
		{helmjob.Chart{Name: "https://example.com/web.tgz"}, "", false},
		{helmjob.Chart{Name: "oci://example.com/web.tgz"}, "", false},
		{helmjob.Chart{Name: "web"}, "", false},
	} {
		if got, ok := tt.chart.LocalFile(); got != tt.want || ok != tt.ok {
			t.Errorf("%+v is the file %q, %v; want %q, %v", tt.chart, got, ok, tt.want, tt.ok)
		}
	}
}

func TestRequestSurvivesJSON(t *testing.T) {
	r := request("default")
	r.Set = map[string]intstr.IntOrString{"a": intstr.FromInt32(1), "b": intstr.FromString("1")}
	text := testenv.Must(json.Marshal(r))(t)
	back := &helmjob.Request{}
	if err := json.Unmarshal(text, back); err != nil || fmt.Sprint(back) != fmt.Sprint(r) {
		t.Errorf("%v, a request came back as another", err)
	}
	testenv.False(t, bytes.ContainsRune(text, '\n'), "a request is more than a line")
}
