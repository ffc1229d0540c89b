// SPDX-License-Identifier: Apache-2.0

// Package alike lets objects of the API that are alike hold their equal parts once. Ten thousand pods of a few hundred Deployments differ in their names,
// their nodes and their addresses; what was decoded ten thousand times besides is the same.
package alike

import (
	"bytes"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Share lets next, an object that has just been decoded and that nobody else holds, have the strings, slices, maps and pointers of old wherever both have equal ones, so that its own can be
// collected. Both are pointers to structs of one type, or nothing is done. Neither may be changed in place from then on, which holds for what caches hold anyhow.
func Share(old, next any) {
	o, n := reflect.ValueOf(old), reflect.ValueOf(next)
	if o.Kind() != reflect.Pointer || n.Kind() != reflect.Pointer || o.Type() != n.Type() || o.IsNil() || n.IsNil() || o.Pointer() == n.Pointer() || o.Elem().Kind() != reflect.Struct {
		return
	}
	share(o.Elem(), n.Elem())
}

// share does it for what n holds, which can be set, and says whether both are equal.
func share(o, n reflect.Value) bool {
	switch n.Kind() {
	case reflect.String:
		if o.String() != n.String() {
			return false
		}
		n.SetString(o.String())
		return true
	case reflect.Pointer:
		if o.IsNil() || n.IsNil() {
			return o.IsNil() == n.IsNil()
		}
		if o.Pointer() != n.Pointer() && !share(o.Elem(), n.Elem()) {
			return false
		}
		n.Set(o)
		return true
	case reflect.Struct:
		return shareStruct(o, n)
	case reflect.Slice:
		return shareSlice(o, n)
	case reflect.Map, reflect.Interface:
		if !reflect.DeepEqual(o.Interface(), n.Interface()) {
			return false
		}
		n.Set(o)
		return true
	}
	return n.Comparable() && o.Equal(n)
}

func shareStruct(o, n reflect.Value) bool {
	if hidden(n.Type()) {
		if !reflect.DeepEqual(o.Addr().Interface(), n.Addr().Interface()) {
			return false
		}
		n.Set(o)
		return true
	}
	equal := true
	for i := range n.NumField() {
		equal = share(o.Field(i), n.Field(i)) && equal
	}
	return equal
}

func shareSlice(o, n reflect.Value) bool {
	if o.IsNil() || n.IsNil() {
		return o.IsNil() == n.IsNil()
	}
	equal := o.Len() == n.Len()
	switch {
	case n.Type().Elem().Kind() == reflect.Uint8:
		equal = equal && bytes.Equal(o.Bytes(), n.Bytes())
	default:
		for i := range min(o.Len(), n.Len()) {
			equal = share(o.Index(i), n.Index(i)) && equal
		}
	}
	if equal {
		n.Set(o.Slice3(0, o.Len(), o.Len())) // whoever appends copies
	}
	return equal
}

// kinds says of each type of struct whether it has fields that reflection may not set: resource.Quantity, time.Time.
var kinds sync.Map // reflect.Type to bool

func hidden(t reflect.Type) bool {
	if known, ok := kinds.Load(t); ok {
		return known.(bool)
	}
	found := false
	for i := range t.NumField() {
		found = found || !t.Field(i).IsExported()
	}
	kinds.Store(t, found)
	return found
}

// kindred bounds how many objects a Family remembers that others may be like.
const kindred = 512

// Family shares the parts of objects that are like one another. The zero value is ready, and safe for use by several goroutines.
type Family struct {
	mu   sync.Mutex
	last map[kin]any
}

type kin struct {
	kind  reflect.Type
	owner types.UID
}

// Transform is a transform of client-go's for an informer, or for several, whose objects shall hold equal parts once. What trim does comes first.
func Transform(trim func(any) (any, error)) func(any) (any, error) {
	f := &Family{}
	return func(obj any) (any, error) {
		obj, err := trim(obj)
		if err == nil {
			f.Join(obj)
		}
		return obj, err
	}
}

// Join lets an object that nobody else holds have the equal parts of the last one of its type that joined with the same controller, or of the last one without a controller.
func (f *Family) Join(obj any) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return // a tombstone of client-go's
	}
	like := kin{kind: reflect.TypeOf(obj)}
	if c := metav1.GetControllerOfNoCopy(m); c != nil {
		like.owner = c.UID
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, ok := f.last[like]; ok {
		Share(old, obj)
	} else if len(f.last) >= kindred {
		f.last = nil
	}
	if f.last == nil {
		f.last = map[kin]any{}
	}
	f.last[like] = obj
}
