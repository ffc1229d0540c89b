// SPDX-License-Identifier: Apache-2.0

package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Objects are objects of files.
type Objects struct {
	ingresses  map[types.NamespacedName]*networkingv1.Ingress
	classes    map[types.NamespacedName]*networkingv1.IngressClass
	services   map[types.NamespacedName]*corev1.Service
	secrets    map[types.NamespacedName]*corev1.Secret
	configMaps map[types.NamespacedName]*corev1.ConfigMap
}

// NewObjects returns no objects.
func NewObjects() *Objects {
	return &Objects{map[types.NamespacedName]*networkingv1.Ingress{}, map[types.NamespacedName]*networkingv1.IngressClass{},
		map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*corev1.Secret{}, map[types.NamespacedName]*corev1.ConfigMap{}}
}

// Read adds the objects of a file: documents of YAML or JSON, and lists of objects in them. Kinds that do not matter to
// an ingress are left out. Objects without a namespace get the given one. Of two objects with the same name the later
// one counts, as with kubectl apply. The error names the document.
func (o *Objects) Read(r io.Reader, namespace string) error {
	d := yaml.NewYAMLOrJSONDecoder(r, 4096)
	for number := 1; ; number++ {
		var raw runtime.RawExtension
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && len(raw.Raw) > 0 && string(raw.Raw) != "null" {
			err = o.add(raw.Raw, metav1.TypeMeta{}, namespace)
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", number, err)
		}
	}
}

// add adds an object, or the objects of a list. The items of a typed list may lack the type, which is then of.
func (o *Objects) add(text []byte, of metav1.TypeMeta, namespace string) error {
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return fmt.Errorf("reading an object: %w", err)
	}
	if head.Kind == "" && head.APIVersion == "" {
		head.TypeMeta = of
	}
	switch kind, list := strings.CutSuffix(head.Kind, "List"); {
	case head.Kind == "" || head.APIVersion == "":
		return errors.New("this is no object of Kubernetes: apiVersion or kind is missing")
	case list:
		for _, item := range head.Items {
			if err := o.add(item, metav1.TypeMeta{APIVersion: head.APIVersion, Kind: kind}, namespace); err != nil {
				return err
			}
		}
		return nil
	}
	switch head.APIVersion + " " + head.Kind {
	case "networking.k8s.io/v1 Ingress":
		return decodeInto(o.ingresses, text, namespace)
	case "networking.k8s.io/v1 IngressClass":
		return decodeInto(o.classes, text, "")
	case "v1 Service":
		return decodeInto(o.services, text, namespace)
	case "v1 ConfigMap":
		return decodeInto(o.configMaps, text, namespace)
	case "v1 Secret":
		return decodeInto(o.secrets, text, namespace)
	case "extensions/v1beta1 Ingress", "networking.k8s.io/v1beta1 Ingress":
		return fmt.Errorf("the Ingress %s is of %s, which Kubernetes has not had since 1.22: write it as networking.k8s.io/v1",
			head.Metadata.Name, head.APIVersion)
	}
	return nil
}

func decodeInto[T any, P interface {
	*T
	metav1.Object
}](to map[types.NamespacedName]*T, text []byte, namespace string) error {
	o := P(new(T))
	if err := json.Unmarshal(text, o); err != nil {
		return fmt.Errorf("reading a %T: %w", *o, err)
	}
	if o.GetName() == "" {
		return fmt.Errorf("a %T has no metadata.name", *o)
	}
	if o.GetNamespace() == "" {
		o.SetNamespace(namespace)
	}
	to[nameOf(o)] = (*T)(o)
	return nil
}
