// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// boundUnauthenticated bounds these connections on the API's port. A client that wants an answer without
// authenticating, such as a load balancer that asks for /readyz, has it: a connection is only closed when there are
// many younger ones.
func boundUnauthenticated(o *Options) *connlimit.Listener {
	if o.Listener == nil {
		return nil
	}
	bound, err := connlimit.ByMemory()
	if err != nil {
		o.Logger.Warn("it is not known how much memory there is; few unauthenticated connections may be open", "error", err)
	}
	l := connlimit.NewListener(o.Listener, cmp.Or(o.unauthenticated, bound))
	o.Listener = l
	return l
}

// identifying is upstream's authentication, which tells the listener of connections that have an authenticated request.
type identifying struct {
	authenticator.Request
	listener *connlimit.Listener
}

// AuthenticateRequest implements authenticator.Request.
func (i identifying) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	answer, ok, err := i.Request.AuthenticateRequest(r)
	if ok && err == nil && answer.User.GetName() != user.Anonymous {
		i.listener.Identified(r.RemoteAddr)
	}
	return answer, ok, err
}
