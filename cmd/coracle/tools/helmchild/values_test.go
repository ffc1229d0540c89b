// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestLargeNumbersPrintAsHelmPrintsThem: docs/helm.md says what Helm's own engine makes of 3000000, and the ways round.
func TestLargeNumbersPrintAsHelmPrintsThem(t *testing.T) {
	c := &chart.Chart{
		Metadata:  &chart.Metadata{Name: "numbers", Version: "1.0.0", APIVersion: chart.APIVersionV2},
		Templates: []*common.File{{Name: "templates/x.yaml", Data: []byte("{{ .Values.plain }} {{ int64 .Values.plain }} {{ .Values.quoted }} {{ .Values.set }}")}},
	}
	values := testenv.Must(mergeValues(&helmjob.Request{
		Values: []helmjob.Document{"{plain: 3000000, quoted: \"3000000\"}"}, Set: map[string]intstr.IntOrString{"set": intstr.FromInt32(3000000)},
	}))(t)
	out := testenv.Must(engine.Render(c, common.Values{"Values": values}))(t)
	testenv.Equal(t, out["numbers/templates/x.yaml"], "3e+06 3000000 3000000 3000000", "")
}
