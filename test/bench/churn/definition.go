// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// definition makes a CustomResourceDefinition of a group of its own with two versions, objects of it, reads and changes
// these in all the ways that clients have, and deletes it.
func (c *churn) definition(ctx context.Context, i int) error {
	group := fmt.Sprintf("g%d.%s.coracle.test", i, c.prefix)
	crd := crdOf(group)
	crds := c.extensions.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := crds.Create(ctx, crd, metav1.CreateOptions{}); err != nil {
		return err
	}
	err := until(ctx, "definition of "+group, func(ctx context.Context) (bool, error) {
		got, err := crds.Get(ctx, crd.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, condition := range got.Status.Conditions {
			if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: "boats"}
	if err := c.customObjects(ctx, gvr); err != nil {
		return err
	}
	// Discovery and the OpenAPI documents as kubectl asks for them.
	if _, err := c.client.Discovery().ServerResourcesForGroupVersion(gvr.GroupVersion().String()); err != nil {
		return err
	}
	if _, err := c.client.Discovery().RESTClient().Get().AbsPath("/openapi/v3/apis/" + group + "/v1").DoRaw(ctx); err != nil {
		return err
	}
	if err := crds.Delete(ctx, crd.Name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	c.done.Definitions.Add(1)
	return until(ctx, "deletion of definition "+crd.Name, deleted(crds.Get, crd.Name))
}

// customObjects makes, reads, changes and deletes objects. The last ones go with the definition.
func (c *churn) customObjects(ctx context.Context, gvr schema.GroupVersionResource) error {
	boats := c.dynamic.Resource(gvr).Namespace("default")
	err := until(ctx, "serving of "+gvr.String(), func(ctx context.Context) (bool, error) {
		_, err := boats.List(ctx, metav1.ListOptions{})
		return err == nil, err
	})
	if err != nil {
		return err
	}
	stop, err := c.watching(ctx, boats, c.dynamic.Resource(gvr.GroupResource().WithVersion("v2")).Namespace("default"))
	if err != nil {
		return err
	}
	defer stop()
	for i := range 10 {
		if err := change(ctx, boats, gvr, i); err != nil {
			return fmt.Errorf("%s: %w", gvr, err)
		}
		c.done.CustomObjects.Add(1)
	}
	return boats.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "half=1"})
}

func change(ctx context.Context, boats dynamic.ResourceInterface, gvr schema.GroupVersionResource, i int) error {
	name := fmt.Sprintf("boat-%d", i)
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": gvr.GroupVersion().String(), "kind": "Boat",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"half": fmt.Sprint(i % 2)}},
		"spec":     map[string]any{"seats": int64(1), "names": []any{"a", "b"}},
	}}
	made, err := boats.Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	err1 := unstructured.SetNestedField(made.Object, int64(2), "spec", "seats")
	_, err2 := boats.Update(ctx, made, metav1.UpdateOptions{})
	_, err3 := boats.Patch(ctx, name, types.MergePatchType, []byte(`{"spec":{"seats":3}}`), metav1.PatchOptions{})
	_, err4 := boats.Get(ctx, name, metav1.GetOptions{})
	o.Object["spec"] = map[string]any{"seats": int64(4)}
	_, err5 := boats.Apply(ctx, name, o, metav1.ApplyOptions{FieldManager: "churn", Force: true})
	_, err6 := boats.Patch(ctx, name, types.MergePatchType, []byte(`{"status":{"afloat":true}}`), metav1.PatchOptions{}, "status")
	return errors.Join(err1, err2, err3, err4, err5, err6)
}

// crdOf is a definition with some schema to it, a rule and a status.
func crdOf(group string) *apiextensionsv1.CustomResourceDefinition {
	properties := map[string]apiextensionsv1.JSONSchemaProps{}
	for i := range 20 {
		properties[fmt.Sprintf("field%d", i)] = apiextensionsv1.JSONSchemaProps{Type: "string", Description: fmt.Sprintf("Field %d of a boat.", i)}
	}
	properties["seats"] = apiextensionsv1.JSONSchemaProps{
		Type: "integer", XValidations: apiextensionsv1.ValidationRules{{Rule: "self > 0", Message: "no boat without a seat"}},
	}
	maximum, length := int64(10), int64(100)
	properties["names"] = apiextensionsv1.JSONSchemaProps{
		Type: "array", MaxItems: &maximum,
		Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &apiextensionsv1.JSONSchemaProps{Type: "string", MaxLength: &length}},
	}
	whole := &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{
		"spec":   {Type: "object", Properties: properties},
		"status": {Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"afloat": {Type: "boolean"}}},
	}}
	version := func(name string, storage bool) apiextensionsv1.CustomResourceDefinitionVersion {
		return apiextensionsv1.CustomResourceDefinitionVersion{
			Name: name, Served: true, Storage: storage,
			Schema:       &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: whole},
			Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
		}
	}
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "boats." + group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensionsv1.NamespaceScoped,
			Names:    apiextensionsv1.CustomResourceDefinitionNames{Plural: "boats", Singular: "boat", Kind: "Boat", ListKind: "BoatList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", true), version("v2", false)},
		},
	}
}
