// SPDX-License-Identifier: Apache-2.0

package kubecompat_test

import (
	"strings"
	"testing"

	cliflag "k8s.io/component-base/cli/flag"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

func TestUpstreamFlagsAreParsed(t *testing.T) {
	type values struct {
		workers int
		names   []string
		deep    bool
	}
	for _, tc := range []struct {
		args []string
		want values
		err  string
	}{
		{args: nil, want: values{workers: 5}},
		{args: []string{"workers=7", "names=a,b", "deep"}, want: values{workers: 7, names: []string{"a", "b"}, deep: true}},
		{args: []string{"--workers=7"}, want: values{workers: 7}},
		{args: []string{"worker_s=7"}, err: `boats has no flag "worker_s"; did you mean "workers"?`},
		{args: []string{"wrokers=7"}, err: `boats has no flag "wrokers"; did you mean "workers"?`},
		{args: []string{"anchor=7"}, err: `boats has no flag "anchor"`},
		{args: []string{"workers"}, err: `boats flag "workers" needs a value: write workers=VALUE`},
		{args: []string{"workers=many"}, err: `boats flag "workers": `},
		{args: []string{"port=1"}, err: `boats flag "port" is refused: there is none`},
		{args: []string{"port=0"}, want: values{workers: 5}},
		{args: []string{"port=1", "wrokers=7"}, err: "wrokers"},
	} {
		var got values
		var port int
		sets := cliflag.NamedFlagSets{}
		sets.FlagSet("one").IntVar(&got.workers, "workers", 5, "")
		sets.FlagSet("one").StringSliceVar(&got.names, "names", nil, "")
		sets.FlagSet("two").BoolVar(&got.deep, "deep", false, "")
		sets.FlagSet("two").IntVar(&port, "port", 0, "")
		c := kubecompat.Component{Name: "boats", Sets: sets, Refused: map[string]kubecompat.Refusal{"port": {Reason: "there is none",
			Harmless: []string{"0"}}}}
		err := c.Parse(tc.args)
		switch {
		case tc.err == "" && err != nil:
			t.Errorf("%q: %v", tc.args, err)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%q: error %v, want %q in it", tc.args, err, tc.err)
		case tc.err == "" && (got.workers != tc.want.workers || got.deep != tc.want.deep || strings.Join(got.names, " ") != strings.Join(tc.want.names, " ")):
			t.Errorf("%q: got %+v, want %+v", tc.args, got, tc.want)
		}
	}
}
