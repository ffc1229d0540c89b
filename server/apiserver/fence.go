// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/coracle-k8s/coracle/server/apiserver/memtransport"
)

// A Fence knows whether the term of leadership that a request's context carries is over (raftstore.Store). Its methods
// return nil for a context without a term.
type Fence interface {
	// CheckTerm sends no request. It returns what this server knows already.
	CheckTerm(context.Context) error
	// ConfirmTerm asks a majority of the voters.
	ConfirmTerm(context.Context) error
}

// TermConfig returns a LoopbackConfig for the loops of one term of leadership, with a transport of its own. On the
// server's side, mark adds to the context of each request the term that the store checks its writes against. The
// returned function refuses later requests, cancels those under way, and waits for their end until ctx is done.
func (s *Server) TermConfig(mark func(context.Context) context.Context) (*rest.Config, func(ctx context.Context) error) {
	transport := memtransport.New(memtransport.Options{Context: mark, Logger: s.options.Logger})
	transport.SetHandler(s.chain.aggregator.GenericAPIServer.Handler)
	config := s.LoopbackConfig()
	config.Transport = transport
	return config, transport.Close
}

// fenceTerms refuses a write whose term of leadership has ended, before the write has any effect. The store refuses
// such a write in any case. The check is for the effects that a request has beside its own write in the store: calls of
// webhooks and other API servers, tokens that it issues, and writes that upstream makes for it with an unrelated
// context, such as those to quotas and allocators.
func (s *Server) fenceTerms(c *genericapiserver.Config) {
	fence := s.options.Fence
	if fence == nil {
		return
	}
	build := c.BuildHandlerChainFunc
	c.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return build(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			info, ok := request.RequestInfoFrom(r.Context())
			if ok && isWrite(r) {
				check := fence.CheckTerm
				if s.beyondStore(info) {
					check = fence.ConfirmTerm
				}
				if err := check(r.Context()); err != nil {
					gv := legacyscheme.Scheme.PrioritizedVersionsForGroup("")[0]
					responsewriters.ErrorNegotiated(apierrors.NewInternalError(err), legacyscheme.Codecs, gv, w, r)
					return
				}
			}
			api.ServeHTTP(w, r)
		}), c)
	}
}

func isWrite(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return false
	}
	return true
}

// beyondStore says whether a request changes something by other means than a write that carries its context into the
// store. Nothing later can refuse such a request, so it is worth waiting for the majority's answer about the term.
func (s *Server) beyondStore(info *request.RequestInfo) bool {
	switch {
	case info.Subresource == "proxy":
		return true
	case info.APIGroup == "" && info.Resource == "serviceaccounts" && info.Subresource == "token":
		return true // issued and not stored
	case info.APIGroup == "" && info.Resource == "pods" && info.Subresource == "eviction":
		return true // core/pod/storage/eviction.go writes the disruption budget with context.TODO
	case info.APIGroup == "" && info.Resource == "services":
		return true // core/service/ipallocator and core/service/allocator/storage do so too
	}
	return s.aggregated(info)
}

// aggregated says whether a request goes to an aggregated API server.
func (s *Server) aggregated(info *request.RequestInfo) bool {
	services := s.chain.aggregator.APIRegistrationInformers.Apiregistration().V1().APIServices().Lister()
	service, err := services.Get(info.APIVersion + "." + info.APIGroup)
	return err == nil && service.Spec.Service != nil
}
