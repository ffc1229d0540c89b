// SPDX-License-Identifier: Apache-2.0

package openapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// crdGroup holds the CustomResourceDefinitions of one group version.
type crdGroup struct {
	version string
	crds    []*apiextensionsv1.CustomResourceDefinition // ordered by name
}

// crdGroups returns the established CRDs, grouped by group version. The key is the path of the group version's OpenAPI
// document, such as apis/GROUP/VERSION. A CRD is in the group of each version that it serves.
func (h *Handler) crdGroups() (map[string]*crdGroup, error) {
	crds, err := h.options.CRDs()
	if err != nil {
		return nil, fmt.Errorf("listing CustomResourceDefinitions: %w", err)
	}
	groups := map[string]*crdGroup{}
	for _, crd := range crds {
		if !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if !v.Served {
				continue
			}
			name := "apis/" + crd.Spec.Group + "/" + v.Name
			if groups[name] == nil {
				groups[name] = &crdGroup{version: v.Name}
			}
			groups[name].crds = append(groups[name].crds, crd)
		}
	}
	for _, g := range groups {
		slices.SortFunc(g.crds, func(a, b *apiextensionsv1.CustomResourceDefinition) int { return strings.Compare(a.Name, b.Name) })
	}
	return groups, nil
}

// hash returns a hash that changes with the documents. The generation changes with a CRD's spec. The UID distinguishes
// a CRD from an earlier one of the same name.
func (g *crdGroup) hash() string {
	var parts []byte
	for _, crd := range g.crds {
		parts = fmt.Appendf(parts, "%s/%s/%d\n", g.version, crd.UID, crd.Generation)
	}
	return contentHash(parts)
}

// documentV3 builds the group version's v3 document.
func (g *crdGroup) documentV3(m media) ([]byte, error) {
	specs := make([]*spec3.OpenAPI, 0, len(g.crds))
	for _, crd := range g.crds {
		s, err := builder.BuildOpenAPIV3(crd, g.version, builder.Options{IncludeSelectableFields: true})
		if err != nil {
			return nil, fmt.Errorf("CustomResourceDefinition %s: %w", crd.Name, err)
		}
		specs = append(specs, s)
	}
	merged, err := builder.MergeSpecsV3(specs...)
	if err != nil {
		return nil, fmt.Errorf("merging the documents of custom resources: %w", err)
	}
	data, err := json.Marshal(merged)
	if err != nil || m == mediaJSON {
		return data, err
	}
	return handler3.ToV3ProtoBinary(data)
}

// specsV2 builds the v2 documents, one per CRD.
func (g *crdGroup) specsV2() ([]*spec.Swagger, error) {
	var specs []*spec.Swagger
	for _, crd := range g.crds {
		s, err := builder.BuildOpenAPIV2(crd, g.version, builder.Options{V2: true, IncludeSelectableFields: true})
		if err != nil {
			return nil, fmt.Errorf("CustomResourceDefinition %s: %w", crd.Name, err)
		}
		s.Definitions = handler.PruneDefaults(s.Definitions)
		specs = append(specs, s)
	}
	return specs, nil
}
