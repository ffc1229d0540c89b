// SPDX-License-Identifier: Apache-2.0

// Package alike lets objects of the API that are alike hold their equal parts once. Ten thousand pods of a few hundred Deployments differ in their names,
// their nodes and their addresses; what was decoded ten thousand times besides is the same.
package alike

import (
	"bytes"
	"math"
	"reflect"
	"sync"
	"unsafe"
	"weak"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
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
	share(o.Elem(), n.Elem(), reflect.Value{})
}

// shareBeside is Share with an object which already has parts of held.
func shareBeside(old, next, held any) {
	h := reflect.ValueOf(held)
	if h.Kind() != reflect.Pointer || h.IsNil() || h.Type() != reflect.TypeOf(next) {
		Share(old, next)
		return
	}
	share(reflect.ValueOf(old).Elem(), reflect.ValueOf(next).Elem(), h.Elem())
}

// share does it for what n holds, which can be set, and says whether both are equal. held is what stands at the same place in an object that n's already has parts of, or nothing: what both hold is not
// written to, since somebody may read the other one, and counts as unequal unless o holds it too.
func share(o, n, held reflect.Value) bool {
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
		if o.Pointer() == n.Pointer() {
			return true
		}
		if held.IsValid() {
			if held.Pointer() == n.Pointer() {
				return false
			}
			held = held.Elem() // nothing of nil
		}
		if !share(o.Elem(), n.Elem(), held) {
			return false
		}
		n.Set(o)
		return true
	case reflect.Struct:
		return shareStruct(o, n, held)
	case reflect.Slice:
		return shareSlice(o, n, held)
	case reflect.Map, reflect.Interface:
		if o.IsNil() || n.IsNil() {
			return o.IsNil() == n.IsNil()
		}
		if leads(n) || !reflect.DeepEqual(o.Interface(), n.Interface()) {
			return false
		}
		n.Set(o)
		return true
	case reflect.Float32, reflect.Float64:
		return math.Float64bits(o.Float()) == math.Float64bits(n.Float()) // 0 and -0 are equal for Go, and written differently
	}
	return n.Comparable() && o.Equal(n)
}

func shareStruct(o, n, held reflect.Value) bool {
	if n.Type() == quantity {
		return false
	}
	if hidden(n.Type()) {
		if !reflect.DeepEqual(o.Addr().Interface(), n.Addr().Interface()) {
			return false
		}
		n.Set(o)
		return true
	}
	equal := true
	for i := range n.NumField() {
		var at reflect.Value
		if held.IsValid() {
			at = held.Field(i)
		}
		equal = share(o.Field(i), n.Field(i), at) && equal
	}
	return equal
}

func shareSlice(o, n, held reflect.Value) bool {
	if o.IsNil() || n.IsNil() {
		return o.IsNil() == n.IsNil()
	}
	equal := o.Len() == n.Len()
	switch {
	case o.Pointer() == n.Pointer():
		return equal
	case held.IsValid() && held.Pointer() == n.Pointer():
		return false
	case n.Type().Elem().Kind() == reflect.Uint8:
		equal = equal && bytes.Equal(o.Bytes(), n.Bytes())
	default:
		for i := range min(o.Len(), n.Len()) {
			var at reflect.Value
			if held.IsValid() && i < held.Len() {
				at = held.Index(i)
			}
			equal = share(o.Index(i), n.Index(i), at) && equal
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

// quantity is the one type of the API whose reading writes: String, and with it every encoding, keeps the text in the quantity that it is asked of, without a lock. So none that has an
// address is looked at, for somebody may read old meanwhile, nor comes to be held by two objects, whose readers do not know of one another. A map's values are copied before they are asked.
var quantity = reflect.TypeFor[resource.Quantity]()

// leading says of each type whether quantities that have an address can be reached from a map's value of it, or from what an interface holds.
var leading sync.Map // reflect.Type to bool

// leads says whether a map or an interface that is not nil leads to quantities that have an address.
func leads(v reflect.Value) bool {
	t := v.Type()
	if v.Kind() == reflect.Interface {
		t = v.Elem().Type()
	}
	if known, ok := leading.Load(t); ok {
		return known.(bool)
	}
	found := reaches(t, false, map[place]bool{})
	leading.Store(t, found)
	return found
}

// place is where a value of a type is: where it has an address, or not.
type place struct {
	kind    reflect.Type
	address bool
}

// reaches says it of a type's values with or without an address.
func reaches(t reflect.Type, address bool, seen map[place]bool) bool {
	if t == quantity {
		return address
	}
	at := place{t, address}
	if seen[at] {
		return false
	}
	seen[at] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return reaches(t.Elem(), true, seen)
	case reflect.Map:
		return reaches(t.Key(), false, seen) || reaches(t.Elem(), false, seen)
	case reflect.Array:
		return reaches(t.Elem(), address, seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if reaches(t.Field(i).Type, address, seen) {
				return true
			}
		}
	}
	return false
}

// kindred bounds how many objects a Family remembers that others may be like.
const kindred = 512

// Family shares the parts of objects that are like one another, and keeps none of them: what it remembers of an object goes when nobody else has it. The zero value is ready, and safe for use by several goroutines.
type Family struct {
	mu    sync.Mutex
	first map[kin]weak.Pointer[byte] // the beginning of an object of the kin's kind
}

type kin struct {
	kind  reflect.Type // of a pointer
	owner types.UID
}

// Transform is a transform of client-go's for an informer, or for several, whose objects shall hold equal parts once. What trim does comes first.
func Transform(trim func(any) (any, error)) func(any) (any, error) {
	f := &Family{}
	return func(obj any) (any, error) {
		obj, err := trim(obj)
		if err == nil {
			f.Join(obj, nil)
		}
		return obj, err
	}
}

// Join lets an object that nobody else holds have the equal parts of its last version, if there is one, and of one of its type that joined with the same controller and is still there, or of one without a controller.
func (f *Family) Join(obj, last any) {
	Share(last, obj)
	m, err := meta.Accessor(obj)
	v := reflect.ValueOf(obj)
	if err != nil || v.Kind() != reflect.Pointer {
		return // a tombstone of client-go's
	}
	like := kinOf(v.Type(), m)
	f.mu.Lock()
	defer f.mu.Unlock()
	known, ok := f.first[like]
	if p := known.Value(); p != nil {
		old := reflect.NewAt(like.kind.Elem(), unsafe.Pointer(p)).Interface()
		shareBeside(old, obj, last)
		if o, err := meta.Accessor(old); err != nil || o.GetName() != m.GetName() || o.GetNamespace() != m.GetNamespace() {
			return
		} // else it takes the place of its last version, which goes
	}
	if f.first == nil || !ok && len(f.first) >= kindred {
		f.first = map[kin]weak.Pointer[byte]{}
	}
	f.first[like] = weak.Make((*byte)(v.UnsafePointer()))
}

func kinOf(kind reflect.Type, m metav1.Object) kin {
	like := kin{kind: kind}
	if c := metav1.GetControllerOfNoCopy(m); c != nil {
		like.owner = c.UID
	}
	return like
}
