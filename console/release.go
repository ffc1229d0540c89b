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
	} `json:"chart"`
	Config   json.RawMessage `json:"config"`
	Manifest string          `json:"manifest"`
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
func (r *storedRelease) values() (string, error) {
	if len(r.Config) == 0 || string(r.Config) == "null" || string(r.Config) == "{}" {
		return "", nil
	}
	if len(r.Config) > maxReleaseText {
		return fmt.Sprintf("# The values are longer than %d MB.\n", maxReleaseText>>20), nil
	}
	var values any
	if err := utiljson.Unmarshal(r.Config, &values); err != nil {
		return "", fmt.Errorf("reading the values: %w", err)
	}
	return toYAML(values)
}

// shortened returns a text of a release, or its beginning if it is too long.
func shortened(text string) string {
	if len(text) <= maxReleaseText {
		return text
	}
	return text[:maxReleaseText] + fmt.Sprintf("\n… (%d more bytes)", len(text)-maxReleaseText)
}
