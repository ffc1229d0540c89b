// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// usageTimeout limits the time of a request for usage: another provider of metrics may be slow.
const usageTimeout = 10 * time.Second

// amounts are CPU in thousandths of a core, and memory in bytes.
type amounts [2]float64

// usageResponse has the current resource use of pods or nodes. Its keys are namespace/name, or a node's name.
type usageResponse struct {
	Use map[string]amounts `json:"use"`
	// Each has the containers: in a list of all pods, of those that have more than one.
	Each map[string]map[string]amounts `json:"each,omitempty"`
	// Failed is the HTTP status of the API's error. The browser would log an error for a response of this status.
	Failed int `json:"failed,omitempty"`
}

// metricsObject is an object of the metrics API: a pod has containers, a node has its own usage.
type metricsObject struct {
	Metadata   struct{ Name, Namespace string }
	Usage      metricsUsage
	Containers []struct {
		Name  string
		Usage metricsUsage
	}
}

type metricsUsage struct{ CPU, Memory resource.Quantity }

func (m *metricsUsage) amounts() amounts {
	return amounts{math.Round(m.CPU.AsApproximateFloat64()*1e4) / 10, float64(m.Memory.Value())}
}

// usage answers with what nodes use, or the pods of a namespace or of all namespaces, those with a label, or one pod.
// It leaves out what the pages do not need, which is most of the metrics API's answer.
func (h *Handler) usage(r *http.Request, u *user) (any, error) {
	q := r.URL.Query()
	path, namespace := "/apis/metrics.k8s.io/v1beta1/", q.Get("namespace")
	switch of := q.Get("resource"); {
	case of == "nodes" && namespace == "", of == "pods" && namespace == "":
		path += of
	case of == "pods" && len(validation.IsDNS1123Label(namespace)) == 0:
		path += "namespaces/" + namespace + "/pods"
	default:
		return nil, newRequestError(http.StatusBadRequest, "the usage of %q in %q is not measured", of, namespace)
	}
	name, selector := q.Get("name"), q.Get("labelSelector")
	if name != "" && (namespace == "" || len(validation.IsDNS1123Subdomain(name)) > 0) {
		return nil, newRequestError(http.StatusBadRequest, "%q in %q is not the name of a pod", name, namespace)
	}
	ctx, cancel := context.WithTimeout(r.Context(), usageTimeout)
	defer cancel()
	out := &usageResponse{Use: map[string]amounts{}, Each: map[string]map[string]amounts{}}
	var err error
	switch {
	case name != "":
		var m metricsObject
		if err = u.get(ctx, path+"/"+name, nil, &m); err == nil {
			out.add(&m, 1)
		}
	case selector != "":
		err = u.readUsage(ctx, path, url.Values{"labelSelector": {selector}}, func(m *metricsObject) { out.add(m, 1) })
	default:
		err = u.readUsage(ctx, path, nil, func(m *metricsObject) { out.add(m, 2) })
	}
	if err != nil {
		code, _, _ := explainError(err)
		if code == http.StatusUnauthorized {
			return nil, err
		}
		out = &usageResponse{Use: map[string]amounts{}, Failed: cmp.Or(code, http.StatusBadGateway)}
	}
	return out, nil
}

// readUsage reads a list of the metrics API, an object at a time.
func (u *user) readUsage(ctx context.Context, path string, query url.Values, take func(*metricsObject)) error {
	response, err := u.request(ctx, http.MethodGet, path, query, http.Header{"Accept": {"application/json"}}, nil)
	if err != nil {
		return err
	}
	return readBy(response, maxResponse, func(d *json.Decoder) error {
		return decodeFields(d, func(key string) error {
			if key != "items" {
				return d.Decode(&json.RawMessage{})
			}
			return decodeEach(d, func(m metricsObject) { take(&m) })
		})
	})
}

// add adds a pod or node. It lists the containers of a pod that has at least as many as several.
func (r *usageResponse) add(m *metricsObject, several int) {
	key := m.Metadata.Name
	if m.Metadata.Namespace != "" {
		key = m.Metadata.Namespace + "/" + key
	}
	sum := m.Usage.amounts()
	each := map[string]amounts{}
	for i := range m.Containers {
		a := m.Containers[i].Usage.amounts()
		each[m.Containers[i].Name] = a
		sum[0], sum[1] = math.Round(10*(sum[0]+a[0]))/10, sum[1]+a[1]
	}
	r.Use[key] = sum
	if len(each) >= several {
		r.Each[key] = each
	}
}
