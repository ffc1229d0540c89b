// SPDX-License-Identifier: Apache-2.0

// Package kinds has the kinds HelmChart and HelmChartConfig: Helm charts as objects of the API, with the fields of k3s.
//
// It owns the definitions of these kinds. The parent package uses the objects.
package kinds

import (
	_ "embed" // for the definitions
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/controllers/definition"
)

//go:embed helmchart.yaml
var chartYAML []byte

//go:embed helmchartconfig.yaml
var configYAML []byte

// Group is the API group of both kinds.
const Group = "helm.cattle.io"

// Charts returns the CustomResourceDefinition of HelmCharts.
func Charts() definition.Kind {
	return definition.Kind{Resource: schema.GroupVersionResource{Group: Group, Version: "v1", Resource: "helmcharts"}, YAML: chartYAML}
}

// Configs returns the CustomResourceDefinition of HelmChartConfigs.
func Configs() definition.Kind {
	return definition.Kind{Resource: schema.GroupVersionResource{Group: Group, Version: "v1", Resource: "helmchartconfigs"},
		YAML: configYAML}
}

// HelmChart is a HelmChart as the API has it. helmchart.yaml describes its fields.
type HelmChart struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   ChartSpec `json:"spec,omitzero"`
	Status Status    `json:"status,omitzero"`
}

// ChartSpec is the desired state. It leaves out fields of k3s that have no effect in coracle.
type ChartSpec struct {
	Chart           string `json:"chart,omitempty"`
	Version         string `json:"version,omitempty"`
	Repo            string `json:"repo,omitempty"`
	ChartContent    string `json:"chartContent,omitempty"`
	TargetNamespace string `json:"targetNamespace,omitempty"`
	CreateNamespace bool   `json:"createNamespace,omitempty"`

	Values        any                           `json:"values,omitempty"`
	ValuesContent string                        `json:"valuesContent,omitempty"`
	ValuesSecrets []SecretRef                   `json:"valuesSecrets,omitempty"`
	Set           map[string]intstr.IntOrString `json:"set,omitempty"`

	FailurePolicy string           `json:"failurePolicy,omitempty"`
	BackOffLimit  *int32           `json:"backOffLimit,omitempty"`
	Timeout       *metav1.Duration `json:"timeout,omitempty"`
	TakeOwnership bool             `json:"takeOwnership,omitempty"`
	ServerSide    string           `json:"serverSide,omitempty"`
	Driver        string           `json:"driver,omitempty"`
	HelmVersion   string           `json:"helmVersion,omitempty"`

	RepoCA                string                       `json:"repoCA,omitempty"`
	RepoCAConfigMap       *corev1.LocalObjectReference `json:"repoCAConfigMap,omitempty"`
	AuthSecret            *corev1.LocalObjectReference `json:"authSecret,omitempty"`
	AuthPassCredentials   bool                         `json:"authPassCredentials,omitempty"`
	DockerRegistrySecret  *corev1.LocalObjectReference `json:"dockerRegistrySecret,omitempty"`
	InsecureSkipTLSVerify bool                         `json:"insecureSkipTLSVerify,omitempty"`
	PlainHTTP             bool                         `json:"plainHTTP,omitempty"`
}

// SecretRef names keys of a Secret that hold values.
type SecretRef struct {
	Name          string   `json:"name,omitempty"`
	Keys          []string `json:"keys,omitempty"`
	IgnoreUpdates bool     `json:"ignoreUpdates,omitempty"`
}

// HelmChartConfig has values for the HelmChart of the same name. helmchartconfig.yaml describes its fields.
type HelmChartConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec ConfigSpec `json:"spec,omitzero"`
}

// ConfigSpec is the spec of a HelmChartConfig.
type ConfigSpec struct {
	Values        any         `json:"values,omitempty"`
	ValuesContent string      `json:"valuesContent,omitempty"`
	ValuesSecrets []SecretRef `json:"valuesSecrets,omitempty"`
	FailurePolicy string      `json:"failurePolicy,omitempty"`
	ServerSide    string      `json:"serverSide,omitempty"`
}

// The types of conditions. The first two are also k3s'.
const (
	JobCreated = "JobCreated"
	Failed     = "Failed"
	Ready      = "Ready"
	// ChartAvailable exists, and is false, while the leader lacks the chart's file.
	ChartAvailable = "ChartAvailable"
)

// Status is the observed state of a chart's release, and whether the release matches the chart.
type Status struct {
	Revision   int64  `json:"revision,omitempty"`
	ConfigHash string `json:"configHash,omitempty"`
	Reconciled string `json:"reconciled,omitempty"`
	// ChartDigest is the checksum of the chart's file from which the release was made. It is "" if the chart was not a
	// file.
	ChartDigest string             `json:"chartDigest,omitempty"`
	Conditions  []metav1.Condition `json:"conditions,omitempty"`
}

// ChartFrom reads an object of the API.
func ChartFrom(u *unstructured.Unstructured) (*HelmChart, error) {
	c := &HelmChart{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, c); err != nil {
		return nil, fmt.Errorf("reading the HelmChart %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	return c, nil
}

// Outline reads the fields of an object that ChartFrom cannot read, as far as they are needed to report about it and to
// release it.
func Outline(u *unstructured.Unstructured) *HelmChart {
	part := map[string]any{"metadata": u.Object["metadata"]}
	c := &HelmChart{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(part, c); err != nil { // never: the API server has read it
		c = &HelmChart{ObjectMeta: metav1.ObjectMeta{Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID()}}
	}
	c.Spec.TargetNamespace, _, _ = unstructured.NestedString(u.Object, "spec", "targetNamespace")
	c.Spec.Driver, _, _ = unstructured.NestedString(u.Object, "spec", "driver")
	if status, found, err := unstructured.NestedMap(u.Object, "status"); err == nil && found {
		s := Status{}
		if runtime.DefaultUnstructuredConverter.FromUnstructured(status, &s) == nil {
			c.Status = s
		}
	}
	return c
}

// ConfigFrom reads an object of the API.
func ConfigFrom(u *unstructured.Unstructured) (*HelmChartConfig, error) {
	c := &HelmChartConfig{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, c); err != nil {
		return nil, fmt.Errorf("reading the HelmChartConfig %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	return c, nil
}
