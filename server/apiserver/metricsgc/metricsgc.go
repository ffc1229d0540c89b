// SPDX-License-Identifier: Apache-2.0

// Package metricsgc takes time series out of the process-wide metrics registry that upstream's components register
// with. Upstream adds series for every custom resource and namespace that it meets and never drops one: a process that
// lives long in a busy cluster carries those of everything that ever was, at two kilobytes for each histogram.
//
// It reaches the metrics through the registry's exported interface only: to register a description a second time is
// refused with an error that holds the metric that has it.
package metricsgc

import (
	"errors"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// vector is a metric with labels, as both upstream's and Prometheus' own types are.
type vector interface {
	DeletePartialMatch(labels prometheus.Labels) int
}

// DropGroupResource removes the series of a resource from every metric that has labels for group and resource, and
// returns their number.
func DropGroupResource(group, resource string) int {
	return drop(func(labels []string) prometheus.Labels {
		if !slices.Contains(labels, "group") || !slices.Contains(labels, "resource") {
			return nil
		}
		return prometheus.Labels{"group": group, "resource": resource}
	})
}

// DropNamespace removes the series of a namespace from every metric with a label for one: "namespace" itself, or
// something and "_namespace".
func DropNamespace(namespace string) int {
	return drop(func(labels []string) prometheus.Labels {
		for _, l := range labels {
			if l == "namespace" || strings.HasSuffix(l, "_namespace") {
				return prometheus.Labels{l: namespace}
			}
		}
		return nil
	})
}

// drop removes from each metric the series that match what which returns for the metric's labels; nil is none.
func drop(which func(labels []string) prometheus.Labels) int {
	registerer := legacyregistry.Registerer()
	registry, ok := registerer.(prometheus.Collector)
	if !ok {
		return 0
	}
	descriptions := make(chan *prometheus.Desc, 16) // so that the registry's lock is held for a short time
	go func() {
		defer close(descriptions)
		registry.Describe(descriptions)
	}()
	var found []*prometheus.Desc
	for d := range descriptions {
		found = append(found, d)
	}
	dropped := 0
	for _, d := range found {
		match := which(labelsOf(d))
		if match == nil {
			continue
		}
		var registered prometheus.AlreadyRegisteredError
		if err := registerer.Register(probe{d}); errors.As(err, &registered) {
			if v, ok := registered.ExistingCollector.(vector); ok {
				dropped += v.DeletePartialMatch(match)
			}
		}
	}
	return dropped
}

// labelsOf returns a description's variable labels, which only its text tells: "Desc{…, variableLabels: {a,b}}".
func labelsOf(d *prometheus.Desc) []string {
	_, labels, _ := strings.Cut(d.String(), "variableLabels: {")
	return strings.Split(strings.TrimRight(labels, "}"), ",")
}

// probe is a collector with a description that is taken.
type probe struct{ registered *prometheus.Desc }

func (p probe) Describe(ch chan<- *prometheus.Desc) { ch <- p.registered }
func (probe) Collect(chan<- prometheus.Metric)      {}
