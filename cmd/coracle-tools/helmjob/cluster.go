// SPDX-License-Identifier: Apache-2.0

package helmjob

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// cluster is how Helm gets at the API server. Upstream's own (genericclioptions.ConfigFlags) keeps what it discovered
// in files of the user's home folder; this one keeps it in memory.
type cluster struct {
	raw       clientcmd.ClientConfig
	config    *rest.Config
	discovery discovery.CachedDiscoveryInterface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	// coming are kinds that the chart itself defines.
	coming map[schema.GroupKind]bool
}

// comingWithin bounds how long a kind that has just been defined may be missing from what the API server says it has.
const comingWithin = 30 * time.Second

// apiHost is what errors call the API server.
const apiHost = "http://kubernetes.default.svc"

func openCluster(socket, namespace string, log *slog.Logger) (*cluster, error) {
	raw := clientcmd.NewDefaultClientConfig(clientcmdapi.Config{},
		&clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: namespace}})
	config := &rest.Config{
		Host: apiHost, WarningHandler: warnings{log},
		QPS: 50, Burst: 100, // a chart's objects are read and written one after another: the default of 5 a second is felt
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }, // those of the environment are for what is downloaded
	}
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	c := &cluster{raw: raw, config: config, discovery: memory.NewMemCacheClient(d)}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(c.discovery)
	return c, nil
}

func (c *cluster) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(c.config), nil }

func (c *cluster) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return c.discovery, nil
}

func (c *cluster) ToRESTMapper() (meta.RESTMapper, error) { return patientMapper{c.mapper, c}, nil }

// patientMapper waits for kinds that are coming. Helm waits until a definition is established, which is a moment before
// the API server lists its kind.
type patientMapper struct {
	*restmapper.DeferredDiscoveryRESTMapper
	c *cluster
}

// RESTMapping is asked for each object of a chart.
func (m patientMapper) RESTMapping(gk schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	for deadline := time.Now().Add(comingWithin); ; {
		mapping, err := m.DeferredDiscoveryRESTMapper.RESTMapping(gk, versions...)
		if err == nil || !meta.IsNoMatchError(err) || !m.c.coming[gk] || time.Now().After(deadline) {
			return mapping, err
		}
		time.Sleep(200 * time.Millisecond) // between two looks
		m.Reset()
	}
}

func (c *cluster) ToRawKubeConfigLoader() clientcmd.ClientConfig { return c.raw }

// warnings writes what the API server warns of into the log.
type warnings struct{ log *slog.Logger }

func (w warnings) HandleWarningHeader(code int, _, text string) {
	if code == 299 && text != "" {
		w.log.Warn("the API server warns", "warning", text)
	}
}
