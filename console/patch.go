// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
)

// longList is the length of a list above which an object is patched by RFC 7386, since the time of upstream's strategic
// patches grows with the square of the length.
const longList = 500

// patch is a user's changes of an object. Kubernetes' own kinds are patched strategically (lists are merged by their
// keys), others by RFC 7386.
type patch struct {
	original    anyObject // the object that the user began with
	userChanges changes
	changes     map[string]any
	schema      strategicpatch.LookupPatchMeta // nil for RFC 7386
}

// identity checks that the fields which identify an object are unchanged.
var identity = []mergepatch.PreconditionFunc{
	mergepatch.RequireKeyUnchanged("apiVersion"), mergepatch.RequireKeyUnchanged("kind"),
	mergepatch.RequireMetadataKeyUnchanged("name"), mergepatch.RequireMetadataKeyUnchanged("namespace"),
}

// newPatch compares two versions of an object.
func newPatch(from, to anyObject) (*patch, error) {
	p := &patch{original: from}
	apiVersion, _ := from["apiVersion"].(string)
	kind, _ := from["kind"].(string)
	typed, err := scheme.Scheme.New(schema.FromAPIVersionAndKind(apiVersion, kind))
	if err == nil && !hasLongList(from) && !hasLongList(to) {
		meta, err := strategicpatch.NewPatchMetaFromStruct(typed)
		if err != nil {
			return nil, fmt.Errorf("how a %s is patched: %w", kind, err)
		}
		p.schema = meta
	}
	p.userChanges = p.changesBetween(from, to)
	if p.schema != nil {
		p.changes, err = strategicpatch.CreateTwoWayMergeMapPatchUsingLookupPatchMeta(
			strategicpatch.JSONMap(from), strategicpatch.JSONMap(to), p.schema, identity...)
	} else {
		p.changes, err = mergePatch(from, to), nil
		for _, unchanged := range identity {
			if !unchanged(p.changes) {
				err = mergepatch.NewErrPreconditionFailed(p.changes)
			}
		}
	}
	if mergepatch.IsPreconditionFailed(err) {
		return nil, errors.New("apiVersion, kind, name and namespace of an object cannot be changed: create another one")
	}
	if err != nil {
		return nil, fmt.Errorf("finding what was changed: %w", err)
	}
	return p, nil
}

func hasLongList(v any) bool {
	switch v := v.(type) {
	case anyObject:
		return hasLongList(map[string]any(v))
	case map[string]any:
		for _, x := range v {
			if hasLongList(x) {
				return true
			}
		}
	case []any:
		return len(v) > longList || slices.ContainsFunc(v, hasLongList)
	}
	return false
}

// mergePatch returns the patch of RFC 7386 from one object to the other.
func mergePatch(from, to map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range to {
		old, had := from[k]
		a, aMap := old.(map[string]any)
		b, bMap := v.(map[string]any)
		switch {
		case had && aMap && bMap:
			if inner := mergePatch(a, b); len(inner) > 0 {
				out[k] = inner
			}
		case !had || !equal(old, v):
			out[k] = v
		}
	}
	for k := range from {
		if _, has := to[k]; !has {
			out[k] = nil
		}
	}
	return out
}

// applyMerge returns an object with a patch of RFC 7386 applied.
func applyMerge(object, patch map[string]any) map[string]any {
	out := map[string]any{}
	maps.Copy(out, object)
	for k, v := range patch {
		inner, isMap := v.(map[string]any)
		switch {
		case v == nil:
			delete(out, k)
		case isMap:
			before, _ := out[k].(map[string]any)
			out[k] = applyMerge(before, inner)
		default:
			out[k] = v
		}
	}
	return out
}

func equal(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// onTopOf returns the live object with the user's changes. Fields that both changed get the user's values.
func (p *patch) onTopOf(live anyObject) (anyObject, error) {
	if p.schema == nil {
		return applyMerge(live, p.changes), nil
	}
	// The library modifies its arguments.
	object, err := clone(live)
	if err != nil {
		return nil, err
	}
	changes, err := clone(p.changes)
	if err != nil {
		return nil, err
	}
	merged, err := strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(
		strategicpatch.JSONMap(object), strategicpatch.JSONMap(changes), p.schema)
	if err != nil {
		return nil, fmt.Errorf("merging the changes: %w", err)
	}
	return anyObject(merged), nil
}

// changes are the values that differ between two versions of an object, by path. The segments of a path are fields, and
// the keys of elements in lists that are merged by a key. A list of any other kind is one value.
type changes map[string]any

// keySeparator separates the segments of a path. No field name contains it.
const keySeparator = "\x00"

// removedField is the value for a field that the newer version lacks.
type removedField struct{}

func (p *patch) changesBetween(from, to anyObject) changes {
	out := changes{}
	out.maps("", from, to, p.schema)
	return out
}

// maps adds the differences of two maps.
func (c changes) maps(at string, from, to map[string]any, meta strategicpatch.LookupPatchMeta) {
	c.forEachCommon(at, from, to, func(at, k string, a, b any) { c.values(at, a, b, k, meta) })
}

// forEachCommon adds the keys that only one of two maps has, and calls f for each key that both have.
func (c changes) forEachCommon(at string, from, to map[string]any, f func(at, k string, a, b any)) {
	for k, a := range from {
		if b, has := to[k]; has {
			f(at+keySeparator+k, k, a, b)
		} else {
			c[at+keySeparator+k] = removedField{}
		}
	}
	for k, b := range to {
		if _, had := from[k]; !had {
			c[at+keySeparator+k] = b
		}
	}
}

// values adds the differences of two values of the field with the given name.
func (c changes) values(at string, a, b any, field string, meta strategicpatch.LookupPatchMeta) {
	aMap, aIsMap := a.(map[string]any)
	bMap, bIsMap := b.(map[string]any)
	aList, aIsList := a.([]any)
	bList, bIsList := b.([]any)
	switch {
	case aIsMap && bIsMap:
		var inner strategicpatch.LookupPatchMeta
		if meta != nil {
			found, how, err := meta.LookupPatchMetadataForStruct(field)
			if err == nil && slices.Contains(how.GetPatchStrategies(), "replace") {
				break // compared as one value
			}
			if err == nil {
				inner = found
			}
		}
		c.maps(at, aMap, bMap, inner)
		return
	case aIsList && bIsList && meta != nil:
		inner, how, err := meta.LookupPatchMetadataForSlice(field)
		if err != nil || !slices.Contains(how.GetPatchStrategies(), "merge") {
			break // compared as one value
		}
		if key := how.GetPatchMergeKey(); key != "" {
			x, xOK := byKey(aList, key)
			y, yOK := byKey(bList, key)
			if xOK && yOK {
				c.elements(at, x, y, inner)
				return
			}
		} else if x, y := asSet(aList), asSet(bList); x != nil && y != nil {
			c.maps(at, x, y, nil)
			return
		}
	}
	if !equal(a, b) {
		c[at] = b
	}
}

// elements adds the differences of the elements, which are maps, of two lists that are merged by a key.
func (c changes) elements(at string, from, to map[string]any, meta strategicpatch.LookupPatchMeta) {
	c.forEachCommon(at, from, to, func(at, _ string, a, b any) {
		aMap, _ := a.(map[string]any)
		bMap, _ := b.(map[string]any)
		c.maps(at, aMap, bMap, meta)
	})
}

// byKey returns the elements of a list by the value of a key. It returns false when an element lacks the key, or two
// elements have the same value.
func byKey(list []any, key string) (map[string]any, bool) {
	out := map[string]any{}
	for _, e := range list {
		m, _ := e.(map[string]any)
		v, has := m[key]
		name := fmt.Sprint(v)
		if _, twice := out[name]; !has || twice {
			return nil, false
		}
		out[name] = e
	}
	return out, true
}

// asSet returns the values of a list as a set. It returns nil when some are maps or lists.
func asSet(list []any) map[string]any {
	out := map[string]any{}
	for _, e := range list {
		switch e.(type) {
		case map[string]any, []any:
			return nil
		}
		out[fmt.Sprint(e)] = e
	}
	return out
}

// conflict returns a field that both changed to different values, in a form for users. It returns "" when there is
// none. A change within something that the other client removed or added is a conflict, too.
func (c changes) conflict(others changes) string {
	for path, value := range c {
		for at, other := range others {
			same := path == at
			if same && !equal(value, other) ||
				!same && (strings.HasPrefix(path, at+keySeparator) || strings.HasPrefix(at, path+keySeparator)) {
				return strings.ReplaceAll(strings.TrimPrefix(path, keySeparator), keySeparator, ".")
			}
		}
	}
	return ""
}
