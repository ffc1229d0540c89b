// SPDX-License-Identifier: Apache-2.0

// Package metricsgc removes time series from the process-wide metrics registry with which upstream's components
// register. Upstream adds series for every custom resource and namespace and never removes one. In a long-running
// process of a busy cluster the series of all deleted objects accumulate, at two kilobytes for each histogram.
//
// It uses only the registry's exported interface: the error about a second registration of a description contains the
// metric that was registered first.
//
// Its goroutines: one that lists a registry's descriptions and ends with the list.
package metricsgc

import (
	"errors"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// vector is a metric with labels. Upstream's and Prometheus' types implement it.
type vector interface {
	DeletePartialMatch(labels prometheus.Labels) int
}

// DropGroupResource removes the series of a resource from every metric that has the labels group and resource. It
// returns their number.
func DropGroupResource(group, resource string) int {
	return removeSeries(func(labels []string) prometheus.Labels {
		if !slices.Contains(labels, "group") || !slices.Contains(labels, "resource") {
			return nil
		}
		return prometheus.Labels{"group": group, "resource": resource}
	})
}

// DropNamespace removes the series of a namespace from every metric with a label for one: "namespace", or a name that
// ends in "_namespace". It returns their number.
func DropNamespace(namespace string) int {
	return removeSeries(func(labels []string) prometheus.Labels {
		for _, l := range labels {
			if l == "namespace" || strings.HasSuffix(l, "_namespace") {
				return prometheus.Labels{l: namespace}
			}
		}
		return nil
	})
}

// removeSeries calls which with each metric's labels, and removes the series that match its result. A nil result
// matches none.
func removeSeries(which func(labels []string) prometheus.Labels) int {
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

// labelsOf returns a description's variable labels. Only its text contains them: "Desc{…, variableLabels: {a,b}}".
func labelsOf(d *prometheus.Desc) []string {
	_, labels, _ := strings.Cut(d.String(), "variableLabels: {")
	return strings.Split(strings.TrimRight(labels, "}"), ",")
}

// probe is a collector that has a description which is registered already.
type probe struct{ registered *prometheus.Desc }

func (p probe) Describe(ch chan<- *prometheus.Desc) { ch <- p.registered }
func (probe) Collect(chan<- prometheus.Metric)      {}
