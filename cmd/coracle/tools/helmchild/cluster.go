// SPDX-License-Identifier: Apache-2.0

package helmchild

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

// cluster gives Helm access to the API server. It holds discovery data in memory; upstream's type
// (genericclioptions.ConfigFlags) writes it to files in the user's home directory.
type cluster struct {
	raw       clientcmd.ClientConfig
	config    *rest.Config
	discovery discovery.CachedDiscoveryInterface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	// ownKinds are the kinds that the chart itself defines.
	ownKinds map[schema.GroupKind]bool
}

// discoveryTimeout is how long to wait for a newly defined kind to appear in the API server's discovery data.
const discoveryTimeout = 30 * time.Second

// apiHost is the API server's address as errors show it.
const apiHost = "http://kubernetes.default.svc"

func openCluster(socket, namespace string, log *slog.Logger) (*cluster, error) {
	raw := clientcmd.NewDefaultClientConfig(clientcmdapi.Config{},
		&clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: namespace}})
	config := &rest.Config{
		Host: apiHost, WarningHandler: warnings{log},
		QPS: 50, Burst: 100, // a chart's objects are read and written one by one: the default of 5 a second would be slow
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }, // the proxies of the environment are for downloads only
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

// patientMapper waits for kinds that the chart defines. Helm waits until a CRD is established, which is shortly before
// the API server lists its kind.
type patientMapper struct {
	*restmapper.DeferredDiscoveryRESTMapper
	c *cluster
}

// RESTMapping returns the mapping of a kind. Helm calls it for each object of a chart.
func (m patientMapper) RESTMapping(gk schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	for deadline := time.Now().Add(discoveryTimeout); ; {
		mapping, err := m.DeferredDiscoveryRESTMapper.RESTMapping(gk, versions...)
		if err == nil || !meta.IsNoMatchError(err) || !m.c.ownKinds[gk] || time.Now().After(deadline) {
			return mapping, err
		}
		time.Sleep(200 * time.Millisecond) // between two attempts
		m.Reset()
	}
}

func (c *cluster) ToRawKubeConfigLoader() clientcmd.ClientConfig { return c.raw }

// warnings writes the API server's warnings to the log.
type warnings struct{ log *slog.Logger }

func (w warnings) HandleWarningHeader(code int, _, text string) {
	if code == 299 && text != "" {
		w.log.Warn("the API server warns", "warning", text)
	}
}
