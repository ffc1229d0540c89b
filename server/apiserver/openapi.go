// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/labels"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	utilopenapi "k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kube-aggregator/pkg/controllers/status/remote"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"

	"github.com/coracle-k8s/coracle/server/openapi"
)

// configureOpenAPI sets up only what server-side apply needs: the type definitions, which buildChain drops once every
// API is installed. The documents, v2 and v3, are served by package openapi. Building them here would cost a third of
// the process's memory.
func configureOpenAPI(c *genericapiserver.Config) {
	definitions := utilopenapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
	namer := openapinamer.NewDefinitionNamer(legacyscheme.Scheme, apiextensionsapiserver.Scheme, aggregatorscheme.Scheme)
	c.OpenAPIConfig = &openapicommon.Config{}
	c.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	c.OpenAPIV3Config.Info.Title = "Kubernetes"
	// If this is unset, upstream sets a closure that keeps every definition reachable.
	c.OpenAPIV3Config.GetOperationIDAndTagsFromRoute = func(openapicommon.Route) (string, []string, error) {
		return "", nil, errors.New("OpenAPI documents are not built from routes in this server")
	}
	c.SkipOpenAPIInstallation = true
}

// installOpenAPI serves /openapi/v2 and /openapi/v3 in place of upstream's handlers.
func (ch *chain) installOpenAPI(resolver aggregatorapiserver.ServiceResolver, o Options) error {
	crds := ch.extensions.Informers.Apiextensions().V1().CustomResourceDefinitions().Lister()
	apis := ch.aggregator.APIRegistrationInformers.Apiregistration().V1().APIServices().Lister()
	handler, err := openapi.New(openapi.Options{
		ServedPaths: ch.aggregator.GenericAPIServer.ListedPaths(),
		CRDs: func() ([]*apiextensionsv1.CustomResourceDefinition, error) {
			return crds.List(labels.Everything())
		},
		APIServices: func() ([]*apiregistrationv1.APIService, error) { return apis.List(labels.Everything()) },
		Fetch:       fetchAggregated(resolver, o.ProxyClientCertFile, o.ProxyClientKeyFile),
		Logger:      o.Logger,
	})
	if err != nil {
		return fmt.Errorf("serving OpenAPI documents: %w", err)
	}
	mux := ch.aggregator.GenericAPIServer.Handler.NonGoRestfulMux
	mux.Handle("/openapi/v2", handler)
	mux.Handle("/openapi/v3", handler)
	mux.UnlistedHandlePrefix("/openapi/v3/", handler)
	return nil
}

// aggregatorUser is the user name with which documents are requested from aggregated servers, as upstream does.
const aggregatorUser = "system:aggregator"

// fetchAggregated returns a function that requests a path from the server behind an APIService. The request uses the
// proxy's certificate that is on disk at that time.
func fetchAggregated(resolver aggregatorapiserver.ServiceResolver, certFile, keyFile string) func(context.Context,
	*apiregistrationv1.APIService, string, http.Header) (*http.Response, error) {
	return func(ctx context.Context, api *apiregistrationv1.APIService, path string, header http.Header) (*http.Response, error) {
		var cert, key []byte
		if certFile != "" {
			var err error
			if cert, err = os.ReadFile(certFile); err != nil {
				return nil, fmt.Errorf("reading the proxy's certificate: %w", err)
			}
			if key, err = os.ReadFile(keyFile); err != nil {
				return nil, fmt.Errorf("reading the proxy's key: %w", err)
			}
		}
		rt, err := transport.New(remote.BuildTransportConfig(nil, cert, key, api))
		if err != nil {
			return nil, fmt.Errorf("connecting to the server behind APIService %s: %w", api.Name, err)
		}
		service := api.Spec.Service
		location, err := resolver.ResolveEndpoint(service.Namespace, service.Name, *service.Port)
		if err != nil {
			return nil, fmt.Errorf("finding the server behind APIService %s: %w", api.Name, err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+location.Host+path, nil)
		if err != nil {
			return nil, err
		}
		req.Header = header.Clone()
		return transport.NewAuthProxyRoundTripper(aggregatorUser, "", nil, nil, rt).RoundTrip(req)
	}
}
