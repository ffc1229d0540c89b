// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"reflect"
)

// field finds a field of type T to which no function of upstream's leads, by the names of the fields on the way.
func field[T any](of any, way []string) (*T, error) {
	at := reflect.ValueOf(of)
	for _, name := range way {
		for at.Kind() == reflect.Pointer || at.Kind() == reflect.Interface {
			at = at.Elem()
		}
		if at.Kind() != reflect.Struct {
			return nil, fmt.Errorf("there is no field %s in a %v", name, at.Kind())
		}
		if at = at.FieldByName(name); !at.IsValid() {
			return nil, fmt.Errorf("there is no field %s any more", name)
		}
	}
	if at.Type() != reflect.TypeFor[T]() || !at.CanAddr() {
		return nil, fmt.Errorf("the field %s is a %v", way[len(way)-1], at.Type())
	}
	return (*T)(at.Addr().UnsafePointer()), nil
}
