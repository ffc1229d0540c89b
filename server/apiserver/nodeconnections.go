// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/streaming/pkg/httpstream"
)

// userNodeConnections and namespaceNodeConnections are how many requests may keep a connection to one node open at a
// time (exec, attach, port-forward, proxy): those of one user, and those to pods of one namespace. The sum of a few
// namespaces' is less than the streams of a node's tunnel (nodetunnel).
const userNodeConnections, namespaceNodeConnections = 100, 200

// maxIdleProxied is how many idle connections to pods are kept for later requests of proxy subresources. Each takes a
// stream of a node's tunnel for 90 s, and no user is charged for it. Upstream has no limit.
const maxIdleProxied = 50

// nodeConnections counts the requests that keep connections to nodes open. They are charged to two owners of which a
// tenant cannot make more: the user, where ServiceAccounts of a namespace are one, and the namespace of the pod. The
// user is the one in whose name the request is made, also by impersonation.
type nodeConnections struct {
	pods corelisters.PodLister
	// aggregated says whether another API server serves a request.
	aggregated func(*request.RequestInfo) bool
	// forUser marks a request's context, see Options.ForUser.
	forUser func(context.Context) context.Context

	mu   sync.Mutex
	open map[nodeShare]int // shares without a connection are absent
}

// nodeShare is an owner's part of a node. The node is empty for requests whose node is not known: those to Services and
// to aggregated APIs.
type nodeShare struct{ owner, node string }

// limitNodeConnections refuses such requests beyond the limits with 429, whether the node is reached by its tunnel or
// not.
func (s *Server) limitNodeConnections(c *genericapiserver.Config, pods corelisters.PodLister) {
	n := &nodeConnections{pods: pods, aggregated: s.aggregated, forUser: s.options.ForUser, open: map[nodeShare]int{}}
	build := c.BuildHandlerChainFunc
	c.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler { return build(n.limit(api), c) }
}

// limit is the HTTP filter. It needs the request's user and RequestInfo.
func (n *nodeConnections) limit(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		if !ok || !n.keepsConnection(r, info) {
			api.ServeHTTP(w, r)
			return
		}
		release, err := n.charge(r.Context(), info)
		if err != nil {
			gv := legacyscheme.Scheme.PrioritizedVersionsForGroup("")[0]
			responsewriters.ErrorNegotiated(apierrors.NewTooManyRequestsError(err.Error()), legacyscheme.Codecs, gv, w, r)
			return
		}
		defer release()
		if n.forUser != nil {
			r = r.WithContext(n.forUser(r.Context()))
		}
		api.ServeHTTP(w, r)
	})
}

// keepsConnection says whether a request may keep a connection of its own to a node open. Requests for logs do not:
// they share one.
func (n *nodeConnections) keepsConnection(r *http.Request, info *request.RequestInfo) bool {
	if info.IsResourceRequest && info.APIGroup == "" {
		switch info.Subresource {
		case "exec", "attach", "portforward", "proxy":
			return true
		}
	}
	return httpstream.IsUpgradeRequest(r) && n.aggregated(info)
}

// charge charges a request. The error says which limit is reached.
func (n *nodeConnections) charge(ctx context.Context, info *request.RequestInfo) (release func(), err error) {
	node, where := n.node(info), "to pods whose node is not known"
	if node != "" {
		where = "to the node " + node
	}
	user := chargedUser(ctx)
	byUser, byNamespace := nodeShare{"user/" + user, node}, nodeShare{"namespace/" + info.Namespace, node}

	n.mu.Lock()
	defer n.mu.Unlock()
	const kinds = "(exec, attach, port-forward, proxy)"
	if n.open[byUser] >= userNodeConnections {
		return nil, fmt.Errorf("%s has %d connections %s %s, which is the limit for one user: close some of them", user,
			userNodeConnections, where, kinds)
	}
	if info.Namespace != "" && n.open[byNamespace] >= namespaceNodeConnections {
		return nil, fmt.Errorf("the namespace %s has %d connections %s %s, which is the limit for one namespace: close some of them",
			info.Namespace, namespaceNodeConnections, where, kinds)
	}
	shares := [2]nodeShare{byUser, byNamespace}
	for _, s := range shares {
		n.open[s]++
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, s := range shares {
			if n.open[s]--; n.open[s] == 0 {
				delete(n.open, s)
			}
		}
	}, nil
}

// node returns the node to which a request leads, or an empty string if it is not known.
func (n *nodeConnections) node(info *request.RequestInfo) string {
	if info.APIGroup != "" {
		return ""
	}
	_, name, _, ok := utilnet.SplitSchemeNamePort(info.Name) // of a proxy, the name may have a scheme and a port
	if !ok {
		return ""
	}
	switch info.Resource {
	case "nodes":
		return name
	case "pods":
		if pod, err := n.pods.Pods(info.Namespace).Get(name); err == nil {
			return pod.Spec.NodeName
		}
	}
	return ""
}

// chargedUser returns the name of the user to whom a request is charged. All ServiceAccounts of a namespace are
// one, since a user of the namespace can make as many of them as they want.
func chargedUser(ctx context.Context) string {
	user, ok := request.UserFrom(ctx)
	if !ok {
		return ""
	}
	if namespace, _, err := serviceaccount.SplitUsername(user.GetName()); err == nil {
		return serviceaccount.MakeNamespaceGroupName(namespace)
	}
	return user.GetName()
}
