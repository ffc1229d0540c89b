// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/metrics-server/pkg/api"
	generatedopenapi "sigs.k8s.io/metrics-server/pkg/api/generated/openapi"
)

// metricsDocument is the name of the document of the only served group that is not Kubernetes' own.
const metricsDocument = "apis/metrics.k8s.io/v1beta1"

// metricsDocuments returns the documents of metrics-server's API in both formats. They are requested from an instance
// of its API server, which never needs figures for that.
func metricsDocuments(version string) (v2, v3 []byte, err error) {
	namer := openapinamer.NewDefinitionNamer(api.Scheme)
	c := genericapiserver.NewConfig(api.Codecs)
	c.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	c.ExternalAddress, c.LoopbackClientConfig = "localhost:443", &rest.Config{}
	c.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(generatedopenapi.GetOpenAPIDefinitions, namer)
	c.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(generatedopenapi.GetOpenAPIDefinitions, namer)
	c.OpenAPIV3Config.Info.Title, c.OpenAPIV3Config.Info.Version = "Kubernetes", "unversioned"
	server, err := c.Complete(nil).New("metrics", genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, nil, err
	}
	if err := api.Install(nil, nil, nil, server, nil); err != nil {
		return nil, nil, err
	}
	server.PrepareRun()
	get := func(path string) ([]byte, error) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Accept", "application/json")
		server.Handler.NonGoRestfulMux.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			return nil, fmt.Errorf("it answered %s with %d: %s", path, w.Code, w.Body)
		}
		return withVersion(w.Body.Bytes(), version)
	}
	if v2, err = get("/openapi/v2"); err != nil {
		return nil, nil, err
	}
	v3, err = get("/openapi/v3/" + metricsDocument)
	return v2, v3, err
}

// join adds the definitions and the paths of another v2 document: definitions that members lack, and paths below
// metrics.k8s.io.
func join(members map[string]map[string]json.RawMessage, other []byte) error {
	var doc struct{ Definitions, Paths map[string]json.RawMessage }
	if err := json.Unmarshal(other, &doc); err != nil {
		return err
	}
	for name, d := range doc.Definitions {
		if _, there := members["definitions"][name]; !there {
			members["definitions"][name] = d
		}
	}
	for path, item := range doc.Paths {
		if strings.HasPrefix(path, "/apis/metrics.k8s.io/") {
			members["paths"][path] = item
		}
	}
	return nil
}
