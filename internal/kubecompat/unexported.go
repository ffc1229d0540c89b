// SPDX-License-Identifier: Apache-2.0

// This file finds fields of other modules' values that none of their functions returns. Each use is listed in
// docs/architecture.md, under "What of other modules' we set".

package kubecompat

import (
	"fmt"
	"reflect"
)

// Field returns a pointer to a field of type T. The names in way lead to the field, from struct to struct. An error
// means that the field does not exist any more, or has another type.
func Field[T any](of any, way []string) (*T, error) {
	at, err := FieldOf(of, way)
	if err != nil {
		return nil, err
	}
	if at.Type() != reflect.TypeFor[T]() || !at.CanAddr() {
		return nil, fmt.Errorf("the field %s is a %v", way[len(way)-1], at.Type())
	}
	return (*T)(at.Addr().UnsafePointer()), nil
}

// SetField sets a field of an interface type that cannot be named here. An error means that the field does not exist
// any more, or that the value does not implement the interface.
func SetField(of any, way []string, value any) error {
	at, err := FieldOf(of, way)
	if err != nil {
		return err
	}
	v := reflect.ValueOf(value)
	if at.Kind() != reflect.Interface || !at.CanAddr() || !v.Type().Implements(at.Type()) {
		return fmt.Errorf("the field %s is a %v, which a %T is not", way[len(way)-1], at.Type(), value)
	}
	reflect.NewAt(at.Type(), at.Addr().UnsafePointer()).Elem().Set(v)
	return nil
}

// FieldOf does the same as Field for a field whose type cannot be named here. Both also accept a value that FieldOf
// returned.
func FieldOf(of any, way []string) (reflect.Value, error) {
	at, found := of.(reflect.Value)
	if !found {
		at = reflect.ValueOf(of)
	}
	for _, name := range way {
		for at.Kind() == reflect.Pointer || at.Kind() == reflect.Interface {
			at = at.Elem()
		}
		if at.Kind() != reflect.Struct {
			return at, fmt.Errorf("there is no field %s in a %v", name, at.Kind())
		}
		if at = at.FieldByName(name); !at.IsValid() {
			return at, fmt.Errorf("there is no field %s any more", name)
		}
	}
	return at, nil
}
