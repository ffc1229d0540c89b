// SPDX-License-Identifier: Apache-2.0

// This file finds fields of other modules' values to which no function of theirs leads. Each use of it stands in
// docs/architecture.md, under "What of other modules' we set".

package kubecompat

import (
	"fmt"
	"reflect"
)

// Field finds a field of type T by the names of the fields on the way. An error says that it is not there any more.
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

// FieldOf is Field for a field whose type has no name here. Either takes what FieldOf leads to, too.
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
