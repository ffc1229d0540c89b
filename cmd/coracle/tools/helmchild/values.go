// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// mergeValues returns the values that override the chart's own.
func mergeValues(req *helmjob.Request) (map[string]any, error) {
	values := map[string]any{}
	for i, doc := range req.Values {
		more, err := loader.LoadValues(strings.NewReader(string(doc)))
		if err != nil {
			which := ""
			if len(req.Values) > 1 {
				which = fmt.Sprintf(" (the %d. of %d documents)", i+1, len(req.Values))
			}
			return nil, newFailure(helmjob.InvalidValues, false, "The values%s are no map in YAML: %v.", which, err)
		}
		values = loader.MergeMaps(values, more)
	}
	for _, path := range slices.Sorted(maps.Keys(req.Set)) {
		if err := setValue(values, path, req.Set[path]); err != nil {
			return nil, newFailure(helmjob.InvalidValues, false, "The value that set names %q cannot be set: %v.", path, err)
		}
	}
	return values, nil
}

// setValue sets one value. The words true, false and null are not strings, and neither are numbers that were written as
// numbers. All other values are strings, also "1": a version, for example, has to be a string.
func setValue(values map[string]any, path string, v intstr.IntOrString) error {
	if v.Type == intstr.Int {
		return strvals.ParseInto(fmt.Sprintf("%s=%d", path, v.IntVal), values)
	}
	switch strings.ToLower(v.StrVal) {
	case "true", "false", "null":
		return strvals.ParseInto(path+"="+v.StrVal, values)
	}
	return strvals.ParseIntoString(path+"="+escapeCommas(v.StrVal), values)
}

var escapedCommas = regexp.MustCompile(`\\*,`)

// escapeCommas escapes the commas of a value, so that helm does not read "a,b=c" as two settings.
func escapeCommas(s string) string {
	return escapedCommas.ReplaceAllStringFunc(s, func(match string) string {
		if len(match)%2 == 1 { // an even number of backslashes: the comma is not escaped
			return `\` + match
		}
		return match
	})
}
