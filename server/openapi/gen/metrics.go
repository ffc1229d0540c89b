// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/metrics-server/pkg/api"
	generatedopenapi "sigs.k8s.io/metrics-server/pkg/api/generated/openapi"
)

// metricsDocument is the name of the document of the one group that is served and is not Kubernetes' own.
const metricsDocument = "apis/metrics.k8s.io/v1beta1"

// metricsV3 has metrics-server's API describe itself, as it does where it is a server of its own. It is never asked for figures.
func metricsV3(version string) ([]byte, error) {
	namer := openapinamer.NewDefinitionNamer(api.Scheme)
	c := genericapiserver.NewConfig(api.Codecs)
	c.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	c.ExternalAddress, c.LoopbackClientConfig = "localhost:443", &rest.Config{}
	c.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(generatedopenapi.GetOpenAPIDefinitions, namer)
	c.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(generatedopenapi.GetOpenAPIDefinitions, namer)
	c.OpenAPIV3Config.Info.Title, c.OpenAPIV3Config.Info.Version = "Kubernetes", "unversioned"
	server, err := c.Complete(nil).New("metrics", genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, err
	}
	if err := api.Install(nil, nil, nil, server, nil); err != nil {
		return nil, err
	}
	server.PrepareRun()
	w := httptest.NewRecorder()
	server.Handler.NonGoRestfulMux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi/v3/"+metricsDocument, nil))
	if w.Code != http.StatusOK {
		return nil, fmt.Errorf("it answered %d: %s", w.Code, w.Body)
	}
	return withVersion(w.Body.Bytes(), version)
}
