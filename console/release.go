// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"

	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

const (
	// maxRelease limits a revision of a release after it is unpacked, in bytes. Packed it has 1 MB at most.
	maxRelease = 16 << 20
	// maxReleaseText limits each displayed text of a release, in bytes.
	maxReleaseText = 2 << 20
)

// storedRelease is the displayed fields of a revision that Helm stores (helm.sh/helm/v4/pkg/release/v1).
type storedRelease struct {
	Info struct {
		LastDeployed string `json:"last_deployed"` //nolint:tagliatelle // Helm's name
		Description  string `json:"description"`
		Notes        string `json:"notes"`
	} `json:"info"`
	Chart struct {
		Metadata struct {
			Name       string `json:"name"`
			Version    string `json:"version"`
			AppVersion string `json:"appVersion"`
		} `json:"metadata"`
		Values json.RawMessage `json:"values"`
	} `json:"chart"`
	Config json.RawMessage `json:"config"`
	helmjob.Record
}

// newStoredRelease unpacks a release as Helm stores it: JSON in base64, packed by gzip except for the oldest releases.
func newStoredRelease(text string) (*storedRelease, error) {
	packed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("the release is not base64: %w", err)
	}
	var unpacked io.Reader = bytes.NewReader(packed)
	if bytes.HasPrefix(packed, []byte{0x1f, 0x8b}) {
		if unpacked, err = gzip.NewReader(unpacked); err != nil {
			return nil, fmt.Errorf("unpacking the release: %w", err)
		}
	}
	limited := &io.LimitedReader{R: unpacked, N: maxRelease}
	r := &storedRelease{}
	if err := json.NewDecoder(limited).Decode(r); err != nil {
		if limited.N <= 0 {
			return nil, fmt.Errorf("the release is longer than %d MB", maxRelease>>20)
		}
		return nil, fmt.Errorf("reading the release: %w", err)
	}
	return r, nil
}

// values returns the values that the user set, as YAML.
func (r *storedRelease) values() (string, error) { return valuesYAML(r.Config, nil) }

// computed returns the values with which the chart was rendered, as helm get values --all does: the chart's own ones,
// and over them those that the user set. Helm does not store the values of charts inside the chart.
func (r *storedRelease) computed() (string, error) { return valuesYAML(r.Config, r.Chart.Values) }

// valuesYAML returns as YAML the values given (a JSON object) over defaults (the same). Both may be empty.
func valuesYAML(given, defaults json.RawMessage) (string, error) {
	if len(given) > maxReleaseText || len(defaults) > maxReleaseText {
		return fmt.Sprintf("# The values are longer than %d MB.\n", maxReleaseText>>20), nil
	}
	var over, under map[string]any
	for text, to := range map[*json.RawMessage]*map[string]any{&given: &over, &defaults: &under} {
		if len(*text) == 0 {
			continue
		}
		if err := utiljson.Unmarshal(*text, to); err != nil {
			return "", fmt.Errorf("reading the values: %w", err)
		}
	}
	if over = mergeValues(under, over); len(over) == 0 {
		return "", nil
	}
	return toYAML(over)
}

// mergeValues returns defaults with the values given, as Helm computes them (helm.sh/helm/v4/pkg/chart/common/util,
// CoalesceValues): tables are merged, and null removes a default. It may change both maps.
func mergeValues(defaults, given map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range given {
		under, known := defaults[k]
		table, isTable := v.(map[string]any)
		underTable, overTable := under.(map[string]any)
		switch {
		case known && v == nil:
		case isTable && overTable:
			out[k] = mergeValues(underTable, table)
		default:
			out[k] = v
		}
	}
	for k, v := range defaults {
		if _, set := given[k]; set || v == nil {
			continue
		}
		if table, isTable := v.(map[string]any); isTable {
			v = mergeValues(table, nil)
		}
		out[k] = v
	}
	return out
}

// shortenText returns a text of a release, or its beginning if it is too long.
func shortenText(text string) string {
	if len(text) <= maxReleaseText {
		return text
	}
	return text[:maxReleaseText] + fmt.Sprintf("\n… (%d more bytes)", len(text)-maxReleaseText)
}
