// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/transport"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server/resourcemetrics"
)

// MetricsHistory says where the past use of nodes and pods is. The server that leads keeps it, if it
// has --metrics-history.
type MetricsHistory struct {
	// Server is this server's name.
	Server string
	// Leader returns the address of the server that leads, empty for none, and whether that is this server.
	Leader func() (address string, self bool)
	// CAFile verifies the certificates of other servers. ServerName is a name in all of them.
	CAFile, ServerName string
}

const (
	// historyForwardTimeout limits a request to the server that leads.
	historyForwardTimeout = 10 * time.Second
	// historyForwarded is a header of such a request, which is not sent on once more.
	historyForwarded = "X-Coracle-Forwarded"
	// historyResponseLimit limits its response in bytes. A name has few curves, of 30 KB at most.
	historyResponseLimit = 16 << 20
)

// metricsHistory serves clusterconfig.MetricsHistoryPath. Users may read the past of what metrics.k8s.io shows them.
type metricsHistory struct {
	MetricsHistory
	collector  *resourcemetrics.Collector // nil when this server does not serve metrics.k8s.io
	authorizer authorizer.UnconditionalAuthorizer
	// certFile is the certificate and key of the front proxy, by which other servers believe who the user is.
	certFile, keyFile string
}

// installMetricsHistory serves the history if the options say where it is.
func (ch *chain) installMetricsHistory(o Options) {
	if o.MetricsHistory == nil {
		return
	}
	server := ch.aggregator.GenericAPIServer
	server.Handler.NonGoRestfulMux.UnlistedHandle(clusterconfig.MetricsHistoryPath, &metricsHistory{
		MetricsHistory: *o.MetricsHistory, collector: ch.metrics.collector, authorizer: server.Authorizer,
		certFile: o.ProxyClientCertFile, keyFile: o.ProxyClientKeyFile,
	})
}

// RecordMetricsHistory keeps the history of metrics until ctx is done. Only the server that leads calls it.
func (s *Server) RecordMetricsHistory(ctx context.Context) {
	if c := s.chain.metrics.collector; c != nil {
		c.RecordHistory(ctx)
		return
	}
	<-ctx.Done()
}

// ServeHTTP implements http.Handler.
func (h *metricsHistory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out, err := h.answer(r)
	if err != nil {
		status := responsewriters.ErrorToAPIStatus(err)
		responsewriters.WriteRawJSON(int(status.Code), status, w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(out) // an error means that the client has ended
}

// answer returns the response in JSON. Its errors are those of the API. A user without the right learns nothing of what
// exists.
func (h *metricsHistory) answer(r *http.Request) ([]byte, error) {
	q := r.URL.Query()
	namespace, name, resource, err := historyOf(q)
	if err != nil {
		return nil, err
	}
	minutes := 24 * 60
	if text := q.Get("minutes"); text != "" {
		if minutes, err = strconv.Atoi(text); err != nil || minutes < 1 {
			return nil, apierrors.NewBadRequest("minutes is not a number of 1 or more")
		}
	}
	if r.Method != http.MethodGet {
		return nil, apierrors.NewMethodNotSupported(schema.GroupResource{Resource: "metrics-history"}, r.Method)
	}
	asking, known := request.UserFrom(r.Context())
	if !known {
		return nil, apierrors.NewUnauthorized("the request has no user")
	}
	decision, reason, err := h.authorizer.Authorize(r.Context(), authorizer.AttributesRecord{
		User: asking, Verb: "get", Namespace: namespace, APIGroup: resourcemetrics.GroupVersion.Group,
		APIVersion: resourcemetrics.GroupVersion.Version, Resource: resource, Name: name, ResourceRequest: true,
	})
	if decision != authorizer.DecisionAllow {
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		return nil, apierrors.NewForbidden(resourcemetrics.GroupVersion.WithResource(resource).GroupResource(), name,
			fmt.Errorf("user %q cannot get resource %q in API group %q in the namespace %q%s", asking.GetName(), resource,
				resourcemetrics.GroupVersion.Group, namespace, reasonSuffix(reason)))
	}
	address, self := h.Leader()
	switch {
	case self && h.collector == nil:
		return json.Marshal(resourcemetrics.History{Server: h.Server, Curves: []resourcemetrics.Curve{}})
	case self:
		out := h.collector.ReadHistory(namespace, name, minutes)
		out.Server = h.Server
		return json.Marshal(out)
	case address == "" || r.Header.Get(historyForwarded) != "":
		return nil, apierrors.NewServiceUnavailable("no server leads at present, and the history is kept by the one that does; try again")
	}
	return h.forward(r.Context(), asking, address, q)
}

func reasonSuffix(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// historyOf returns the subject of a request: a pod with its namespace, or a node.
func historyOf(q url.Values) (namespace, name, resource string, err error) {
	namespace, pod, node := q.Get("namespace"), q.Get("pod"), q.Get("node")
	switch {
	case namespace != "" && pod != "" && node == "":
		return namespace, pod, "pods", nil
	case namespace == "" && pod == "" && node != "":
		return "", node, "nodes", nil
	}
	return "", "", "", apierrors.NewBadRequest("give a namespace and a pod, or a node")
}

// forward asks the server that leads, in the name of the user. That server checks the user's rights as well. It keeps
// neither a connection nor the certificate, as such requests are rare.
func (h *metricsHistory) forward(ctx context.Context, asking user.Info, address string, q url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, historyForwardTimeout)
	defer cancel()
	away := func(err error) error {
		return apierrors.NewServiceUnavailable("the server that leads, " + address + ", keeps the history and does not answer: " + err.Error())
	}
	pem, err := os.ReadFile(h.CAFile)
	if err != nil {
		return nil, away(err)
	}
	certificate, err := tls.LoadX509KeyPair(h.certFile, h.keyFile)
	if err != nil {
		return nil, away(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	once := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: h.ServerName, Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
	}}
	target := url.URL{Scheme: "https", Host: address, Path: clusterconfig.MetricsHistoryPath, RawQuery: q.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, away(err)
	}
	r.Header.Set(historyForwarded, h.Server)
	r.Header.Set("Accept", "application/json")
	response, err := transport.NewAuthProxyRoundTripper(asking.GetName(), asking.GetUID(), asking.GetGroups(), asking.GetExtra(), once).
		RoundTrip(r)
	if err != nil {
		return nil, away(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, historyResponseLimit))
	if err != nil {
		return nil, away(err)
	}
	if response.StatusCode != http.StatusOK {
		status := apierrors.StatusError{}
		if err := json.Unmarshal(body, &status.ErrStatus); err != nil || status.ErrStatus.Code == 0 {
			return nil, away(fmt.Errorf("it answered %s", response.Status))
		}
		return nil, &status
	}
	return body, nil
}
