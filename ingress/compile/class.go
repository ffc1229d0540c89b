// SPDX-License-Identifier: Apache-2.0

package compile

import (
	networkingv1 "k8s.io/api/networking/v1"
)

const (
	// Controller is the controller of our IngressClasses.
	Controller = "coracle.dev/ingress"
	// Class is the IngressClass that the cluster begins with.
	Class = "coracle"
	// AdoptedAnnotation gives us an IngressClass of another controller's name, when it is "true".
	AdoptedAnnotation = "coracle.dev/ingress"
	// classAnnotation named a class before there were IngressClasses.
	classAnnotation = "kubernetes.io/ingress.class"
)

// adopted are names of classes of others that are served as long as no IngressClass has that name.
var adopted = []string{"nginx", "traefik"}

// classes are the names of those that are served here.
type classes map[string]bool

func servedClasses(all []*networkingv1.IngressClass) classes {
	out := classes{Class: true}
	for _, name := range adopted {
		out[name] = true
	}
	for _, c := range all {
		out[c.Name] = c.Spec.Controller == Controller || c.Annotations[AdoptedAnnotation] == "true"
	}
	return out
}

// serve says whether an Ingress is of one of the classes. One that names none is not: the API server gives new ones the
// default class.
func (c classes) serve(ing *networkingv1.Ingress) bool {
	return c[classOf(ing)]
}

func classOf(ing *networkingv1.Ingress) string {
	if ing.Spec.IngressClassName != nil {
		return *ing.Spec.IngressClassName
	}
	return ing.Annotations[classAnnotation]
}
