// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestWatchResumesAndRestarts: a watch begins with all that there is, says when it has had that, goes on after its end
// where it was, and begins again where the server has forgotten that.
func TestWatchResumesAndRestarts(t *testing.T) {
	var asked []url.Values
	answers := [][]byte{
		slices.Concat(event(t, watch.Added, aNode("7")), event(t, watch.Bookmark, aNode("9"))),
		event(t, watch.Modified, aNode("12")),
		nil, // ends before anything has come
		event(t, watch.Error, &metav1.Status{Message: "too old"}),
		event(t, watch.Added, aNode("20")),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		q.Del("timeoutSeconds")
		asked = append(asked, q)
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(answers[len(asked)-1]) // the reader finds what is missing
	}))
	defer server.Close()
	complete := 0
	s := &stream{client: server.Client(), url: server.URL, selectors: url.Values{"fieldSelector": {"a=b"}}, complete: func() { complete++ }}
	for i := range answers {
		testenv.NoError(t, s.read(t.Context()), "watch %d", i)
	}
	testenv.Equal(t, complete, 1, "times complete:")
	from := func(revision string) url.Values {
		q := url.Values{"watch": {"true"}, "allowWatchBookmarks": {"true"}, "fieldSelector": {"a=b"}}
		if revision == "" {
			q.Set("sendInitialEvents", "true")
			q.Set("resourceVersionMatch", "NotOlderThan")
		} else {
			q.Set("resourceVersion", revision)
		}
		return q
	}
	for i, want := range []url.Values{from(""), from("9"), from("12"), from("12"), from("")} {
		testenv.False(t, asked[i].Encode() != want.Encode(), "watch %d asked for %v, want %v", i, asked[i], want)
	}
	testenv.Equal(t, s.revision, "20", "at")
}

// TestSettingsStreamCompletesWithAllConfigMaps: a stream of settings has begun when it has said what stands in each of
// them, however much that is.
func TestSettingsStreamCompletesWithAllConfigMaps(t *testing.T) {
	complete := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range clustersettings.Names() {
			fmt.Fprintf(w, `{"name": %q, "data": {"a": %q}}`+"\n", name, strings.Repeat("x", 10_000))
		}
		fmt.Fprintf(w, "{}\n")
	}))
	defer server.Close()
	if err := readSettings(t.Context(), server.Client(), server.URL, func() { complete++ }); err != nil || complete != 1 {
		t.Errorf("%d times complete, %v", complete, err)
	}
}

func aNode(revision string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: revision, Labels: map[string]string{"a": "b"}}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "b"}}}
}

// event is one as an API server sends it.
func event(t *testing.T, kind watch.EventType, o runtime.Object) []byte {
	t.Helper()
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	testenv.Require(t, ok, "no protobuf")
	raw := testenv.Must(runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), o))(t)
	var one, framed bytes.Buffer
	testenv.NoError(t, info.StreamSerializer.Encode(&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: raw}}, &one))
	testenv.Must(io.Copy(info.StreamSerializer.Framer.NewFrameWriter(&framed), &one))(t)
	return framed.Bytes()
}
