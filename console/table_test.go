// SPDX-License-Identifier: Apache-2.0

package console

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestTableIsReadInAnyOrder: an API may write the fields of a list in any order, and more of them than are read.
func TestTableIsReadInAnyOrder(t *testing.T) {
	const rows = `"rows":[{"cells":["a",1],"object":{"metadata":{"name":"a","uid":"1","managedFields":[{"x":[{}]}]}}},{"cells":null,"object":null}]`
	for text, want := range map[string]string{
		`{"kind":"Table","metadata":{"continue":"c"},` + rows + `}`:               "a,",
		`{` + rows + `,"more":{"rows":[1]},"metadata":null,"kind":"Table"}`:       "a,",
		`{"kind":"Table","rows":null,"columnDefinitions":null}`:                   "",
		`{"items":[{"metadata":{"name":"b"}},{}],"kind":"PodList","metadata":{}}`: "b,",
		`{"kind":"Pod","metadata":{"name":"c","uid":"2"}}`:                        "c",
		`{}`: "",
	} {
		got, err := readTable(&http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(text))})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var names []string
		for _, r := range got.rows() {
			names = append(names, r.Name)
		}
		testenv.True(t, strings.Join(names, ",") == want, "%s has %q", text, names)
	}
	for _, text := range []string{``, `[]`, `null`, `{"rows":{}}`, `{"rows":["a"]}`, `{"rows":[{}`, `{"kind":1}`, `{"rows":[]`, `<html>`} {
		got, err := readTable(&http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(text))})
		testenv.True(t, err != nil, "%s is read as %+v", text, got)
	}
}
