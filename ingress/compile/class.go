// SPDX-License-Identifier: Apache-2.0

package compile

import (
	networkingv1 "k8s.io/api/networking/v1"
)

const (
	// Controller is the controller of coracle's IngressClasses.
	Controller = "coracle.dev/ingress"
	// Class is the IngressClass that a new cluster has.
	Class = "coracle"
	// AdoptedAnnotation, when it is "true", makes coracle serve an IngressClass that names another controller.
	AdoptedAnnotation = "coracle.dev/ingress"
	// classAnnotation named the class of an Ingress before there were IngressClasses.
	classAnnotation = "kubernetes.io/ingress.class"
)

// adoptedControllers are the names of other controllers' classes that are served as long as no IngressClass has that
// name.
var adoptedControllers = []string{"nginx", "traefik"}

// classes says, by name, which classes are served.
type classes map[string]bool

func servedClasses(all []*networkingv1.IngressClass) classes {
	out := classes{Class: true}
	for _, name := range adoptedControllers {
		out[name] = true
	}
	for _, c := range all {
		out[c.Name] = c.Spec.Controller == Controller || c.Annotations[AdoptedAnnotation] == "true"
	}
	return out
}

// serve reports whether an Ingress is of a served class. An Ingress that names no class is not, since the API server
// sets the default class in new ones.
func (c classes) serve(ing *networkingv1.Ingress) bool {
	return c[ClassOf(ing)]
}

// ClassOf returns the class that an Ingress names; "" for none.
func ClassOf(ing *networkingv1.Ingress) string {
	if ing.Spec.IngressClassName != nil {
		return *ing.Spec.IngressClassName
	}
	return ing.Annotations[classAnnotation]
}
