// SPDX-License-Identifier: Apache-2.0

package table

import (
	"maps"
	"slices"
)

// KindCharges is the kind of a section that holds Charges. Its key is KindCharges, a slash, and the name of the
// compiler. A node removes these sections before its proxy gets the table.
const KindCharges = "charges"

// Charges are estimates of the memory that a proxy needs for the objects of each namespace.
type Charges struct {
	// Namespaces are those that take a MiB or more, ordered by name. Others is the sum over the others, in bytes.
	Namespaces []Charge `json:"namespaces"`
	Others     int64    `json:"others,omitempty"`
}

// Charge is what the objects of a namespace take, in bytes, rounded up to whole MiB.
type Charge struct {
	Namespace string `json:"namespace"`
	Bytes     int64  `json:"bytes"`
	// Object is one of the namespace's objects, for events.
	Object Object `json:"object"`
}

// Object identifies an object of the API in the namespace of its Charge.
type Object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

// minCharges is the sum, in bytes, below which a table has no Charges. The smallest proxy may have 64 MiB, and there
// are two compilers: their sum is below half of that then.
const minCharges = 16 << 20

// PutCharges adds the Charges of a compiler, unless they are small. object returns an object of a namespace.
func (s Sections) PutCharges(compiler string, bytes map[string]int, object func(namespace string) Object) error {
	var out Charges
	all := 0
	for _, namespace := range slices.Sorted(maps.Keys(bytes)) {
		n := bytes[namespace]
		all += n
		if n < 1<<20 {
			out.Others += int64(n)
			continue
		}
		out.Namespaces = append(out.Namespaces, Charge{namespace, (int64(n) + 1<<20 - 1) >> 20 << 20, object(namespace)})
	}
	if out.Others = (out.Others + 1<<20 - 1) >> 20 << 20; all < minCharges {
		return nil
	}
	return s.Put(KindCharges+"/"+compiler, out)
}
