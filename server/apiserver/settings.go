// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"net/http"

	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/server/ingress"
	"github.com/coracle-k8s/coracle/server/settings"
)

// installSettings adds the handler of clustersettings.Path, which streams the cluster settings to nodes. It is not part
// of the Kubernetes API.
func (ch *chain) installSettings(g *generic, o Options) error {
	client, err := kubernetes.NewForConfig(g.config.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("building a client for the settings that nodes follow: %w", err)
	}
	ch.settings = settings.New(client, g.config.Authorization.Authorizer, o.Logger)
	ch.aggregator.GenericAPIServer.Handler.NonGoRestfulMux.UnlistedHandle(clustersettings.Path, ch.settings)
	return nil
}

// installIngress adds the handler of table.Path, which streams the table of Ingress routes to nodes. It is not part of
// the Kubernetes API.
func (ch *chain) installIngress(g *generic, o Options) error {
	client, err := kubernetes.NewForConfig(g.config.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("building a client for the table of the ingress: %w", err)
	}
	of, err := metadata.NewForConfig(g.config.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("building a client of metadata for the table of the ingress: %w", err)
	}
	var gateways *ingress.Gateways
	if o.GatewayUse != nil {
		api, err := gatewayapi.New(g.config.LoopbackClientConfig)
		if err != nil {
			return fmt.Errorf("building a client for the table of the ingress: %w", err)
		}
		gateways = &ingress.Gateways{Client: api, Use: o.GatewayUse}
	}
	ch.ingress = ingress.New(ingress.Options{Client: client, Metadata: of, Gateways: gateways,
		NoIngress: o.Cluster.Disabled.Has(clusterconfig.PartIngress),
		Rules:     o.Ingress, Logger: o.Logger})
	ch.aggregator.GenericAPIServer.Handler.NonGoRestfulMux.UnlistedHandle(table.Path, ch.ingress)
	return nil
}

// withSettingsStreams returns a check by which also the streams that nodes follow (clustersettings.Path, table.Path)
// are long-running requests.
func withSettingsStreams(check request.LongRunningRequestCheck) request.LongRunningRequestCheck {
	return func(r *http.Request, info *request.RequestInfo) bool {
		return check(r, info) || info != nil && !info.IsResourceRequest && (info.Path == clustersettings.Path || info.Path == table.Path)
	}
}
