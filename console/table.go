// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"errors"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type column struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Priority    int32  `json:"priority"`
	Description string `json:"description"`
}

// row is one object of a table, in the form for a page.
type row struct {
	UID       string            `json:"uid"`
	Namespace string            `json:"ns,omitempty"`
	Name      string            `json:"name"`
	Cells     []any             `json:"cells"`
	Created   string            `json:"created,omitempty"`
	Deleting  string            `json:"deleting,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Owner     *owner            `json:"owner,omitempty"`
	// Use and Limits are of a pod or node, if the request has includeObject=Object: see rowObject.use.
	Use    []int64             `json:"use,omitempty"`
	Limits map[string][2]int64 `json:"limits,omitempty"`
}

type owner struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// metadata is the fields of an object's metadata that the console reads. It leaves out managedFields, which are half of
// the text.
type metadata struct {
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	UID               string                  `json:"uid"`
	ResourceVersion   string                  `json:"resourceVersion"`
	CreationTimestamp string                  `json:"creationTimestamp"`
	DeletionTimestamp string                  `json:"deletionTimestamp"`
	Labels            map[string]string       `json:"labels"`
	OwnerReferences   []metav1.OwnerReference `json:"ownerReferences"`
}

// table is a response of the API: a table, a list, or one object.
type table struct {
	Kind     string `json:"kind"`
	Metadata struct {
		metadata
		Continue           string `json:"continue"`
		RemainingItemCount *int64 `json:"remainingItemCount"`
	} `json:"metadata"`
	ColumnDefinitions []column    `json:"columnDefinitions"`
	Rows              []tableRow  `json:"rows"`
	Items             []tableItem `json:"items"`
}

type tableRow struct {
	Cells  []any     `json:"cells"`
	Object rowObject `json:"object"`
}

type tableItem struct {
	Metadata metadata `json:"metadata"`
}

// readTable parses a list of the API while it is received, a row at a time. It never holds the text of a page, which is
// a megabyte.
func readTable(response *http.Response) (*table, error) {
	t := &table{}
	if err := readBy(response, maxResponse, t.decode); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *table) decode(d *json.Decoder) error {
	return decodeFields(d, func(key string) error {
		switch key {
		case "kind":
			return d.Decode(&t.Kind)
		case "metadata":
			return d.Decode(&t.Metadata)
		case "columnDefinitions":
			return d.Decode(&t.ColumnDefinitions)
		case "rows":
			return decodeEach(d, func(e tableRow) { t.Rows = append(t.Rows, e) })
		case "items":
			return decodeEach(d, func(e tableItem) { t.Items = append(t.Items, e) })
		}
		return d.Decode(&json.RawMessage{})
	})
}

// decodeFields calls field with the key of each field of an object. field decodes the value.
func decodeFields(d *json.Decoder, field func(key string) error) error {
	if err := expectDelim(d, '{'); err != nil {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err //nolint:wrapcheck // readBy does
		}
		if err := field(key.(string)); err != nil { //nolint:forcetypeassert // a key of an object
			return err
		}
	}
	return expectDelim(d, '}')
}

// decodeEach reads an array, or null, and calls take with each element.
func decodeEach[E any](d *json.Decoder, take func(E)) error {
	if open, err := d.Token(); err != nil || open == nil {
		return err //nolint:wrapcheck // readTable does
	} else if open != json.Delim('[') {
		return errNoTable
	}
	for d.More() {
		var e E
		if err := d.Decode(&e); err != nil {
			return err //nolint:wrapcheck // readTable does
		}
		take(e)
	}
	return expectDelim(d, ']')
}

// errNoTable says that a response is not a list.
var errNoTable = errors.New("it is no list")

func expectDelim(d *json.Decoder, want json.Delim) error {
	got, err := d.Token()
	if err == nil && got != want {
		err = errNoTable
	}
	return err
}

// plainColumns are the columns for an API that has no tables.
var plainColumns = []column{{Name: "Name", Type: "string"}, {Name: "Created At", Type: "date"}}

func (t *table) rows() []row {
	if t.Kind != "Table" {
		out := make([]row, 0, len(t.Items))
		for i := range t.Items {
			m := &t.Items[i].Metadata
			out = append(out, newRow(m, []any{m.Name, m.CreationTimestamp}))
		}
		if len(t.Items) == 0 && t.Metadata.UID != "" {
			m := &t.Metadata.metadata
			out = append(out, newRow(m, []any{m.Name, m.CreationTimestamp}))
		}
		return out
	}
	out := make([]row, 0, len(t.Rows))
	for i := range t.Rows {
		r := newRow(&t.Rows[i].Object.Metadata, t.Rows[i].Cells)
		r.Use, r.Limits = t.Rows[i].Object.requestsAndLimits()
		out = append(out, r)
	}
	return out
}

func newRow(m *metadata, cells []any) row {
	r := row{
		UID: m.UID, Namespace: m.Namespace, Name: m.Name, Cells: cells, Created: m.CreationTimestamp, Deleting: m.DeletionTimestamp,
		Labels: m.Labels,
	}
	if cells == nil {
		r.Cells = []any{}
	}
	if r.UID == "" { // some kinds have none, such as metrics
		r.UID = m.Namespace + "/" + m.Name
	}
	for i := range m.OwnerReferences {
		if o := &m.OwnerReferences[i]; o.Controller != nil && *o.Controller {
			r.Owner = &owner{Kind: o.Kind, Name: o.Name}
		}
	}
	return r
}

// resourceVersion returns the resource version of a response. A bookmark has it in the row of an object without a name.
func (t *table) resourceVersion() string {
	for i := range t.Rows {
		if rv := t.Rows[i].Object.Metadata.ResourceVersion; rv != "" {
			return rv
		}
	}
	return t.Metadata.ResourceVersion
}
