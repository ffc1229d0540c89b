// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// boundUnauthenticated limits the number of unauthenticated connections to the API's port. A client that does not
// authenticate, such as a load balancer that requests /readyz, is still answered: its connection is closed only when
// there are many younger ones.
func boundUnauthenticated(o *Options) *connlimit.Listener {
	if o.Listener == nil {
		return nil
	}
	bound, err := connlimit.ByMemory()
	if err != nil {
		o.Logger.Warn("the available memory is unknown; the limit on unauthenticated connections is low", "error", err)
	}
	l := connlimit.NewListener(o.Listener, cmp.Or(o.unauthenticated, bound))
	o.Listener = l
	return l
}

// identityNotifier is upstream's authenticator. It also notifies the listener which connections have an authenticated
// request.
type identityNotifier struct {
	authenticator.Request
	listener *connlimit.Listener
}

// AuthenticateRequest implements authenticator.Request.
func (i identityNotifier) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	answer, ok, err := i.Request.AuthenticateRequest(r)
	if ok && err == nil && answer.User.GetName() != user.Anonymous {
		i.listener.Identified(r.RemoteAddr)
	}
	return answer, ok, err
}
