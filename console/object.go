// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// anyObject is an object of the API of any kind. Whole numbers in it are int64, since float64 does not represent all
// numbers above 2^53.
type anyObject map[string]any

// UnmarshalJSON implements json.Unmarshaler.
func (o *anyObject) UnmarshalJSON(text []byte) error {
	return utiljson.Unmarshal(text, (*map[string]any)(o)) //nolint:wrapcheck // the error is clear by itself
}

func (o anyObject) metadata() map[string]any {
	m, _ := o["metadata"].(map[string]any)
	return m
}

func (o anyObject) resourceVersion() string {
	s, _ := o.metadata()["resourceVersion"].(string)
	return s
}

// withoutManagedFields removes managedFields, which is half of an object's text and not useful to users.
func (o anyObject) withoutManagedFields() anyObject {
	delete(o.metadata(), "managedFields")
	return o
}

// yaml returns an object as YAML, for users to read and edit.
func (o anyObject) yaml() (string, error) {
	return toYAML(map[string]any(o))
}

const (
	// maxYAML limits a text that is written as YAML, in bytes.
	maxYAML = 16 << 20
	// yamlNode is the least number of bytes that each value of such a text counts for, since writing it takes ten times
	// its length.
	yamlNode = 160
)

// toYAML writes a value that was read from JSON. YAML repeats the indentation on each line, so that 500 bytes of deep
// JSON can be gigabytes of YAML. It returns an error for these before it begins.
func toYAML(v any) (string, error) {
	if yamlSize(v, 0, maxYAML) > maxYAML {
		return "", apierrors.NewBadRequest(fmt.Sprintf("as YAML this is longer than %d MB: kubectl get -o json shows it", maxYAML>>20))
	}
	text, err := yaml.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("writing YAML: %w", err)
	}
	return string(text), nil
}

// yamlSize returns the approximate length of v as YAML at a depth, in bytes, with yamlNode for each value. It stops
// soon after the length exceeds most.
func yamlSize(v any, depth, most int) int {
	size := 2*depth + yamlNode
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if size += len(key) + 2 + yamlSize(value, depth+1, most-size); size > most {
				return size
			}
		}
	case []any:
		for _, value := range v {
			if size += 2 + yamlSize(value, depth+1, most-size); size > most {
				return size
			}
		}
	case string:
		size += len(v) + 2*depth*strings.Count(v, "\n")
	}
	return size
}

// objectResponse has an object as JSON, and as text in YAML.
type objectResponse struct {
	Object anyObject `json:"object"`
	YAML   string    `json:"yaml"`
}

func newObjectResponse(o anyObject) (*objectResponse, error) {
	text, err := o.withoutManagedFields().yaml()
	if apierrors.IsBadRequest(err) {
		text, err = "# "+err.Error()+"\n", nil
	}
	return &objectResponse{Object: o, YAML: text}, err
}

// object answers with one object. With the parameter edit it leaves out the fields that cannot be edited.
func (h *Handler) object(r *http.Request, u *user) (any, error) {
	path := r.URL.Query().Get("path")
	if err := objectPath(path); err != nil {
		return nil, newRequestError(http.StatusBadRequest, "%s", err)
	}
	var o anyObject
	if err := u.get(r.Context(), path, nil, &o); err != nil {
		return nil, err
	}
	if r.URL.Query().Get("edit") == "true" {
		o = ofUser(o)
	}
	return newObjectResponse(o)
}

// objectPath checks that a path is that of one object. A collection may be of any size.
func objectPath(path string) error {
	if err := apiPath(http.MethodGet, path); err != nil {
		return err
	}
	info, err := resolver.NewRequestInfo(&http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}})
	if err != nil || !info.IsResourceRequest || info.Name == "" || info.Subresource != "" {
		return fmt.Errorf("%q is not the path of an object", path)
	}
	return nil
}

func objectOf(text string) (anyObject, error) {
	if err := fewAliases(text); err != nil {
		return nil, fmt.Errorf("this is not taken: %w", err)
	}
	raw, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("this is not YAML: %w", err)
	}
	var o anyObject
	if err := utiljson.Unmarshal(raw, (*map[string]any)(&o)); err != nil || o == nil {
		return nil, fmt.Errorf("this is not an object: it begins with apiVersion, kind and metadata")
	}
	return o, nil
}
