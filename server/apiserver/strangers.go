// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/coracle-k8s/coracle/internal/halfopen"
	"github.com/coracle-k8s/coracle/internal/memlimit"
)

const (
	// strangerBytes is what a connection over which no request was authenticated costs, and strangersShare the part of the memory that they may have together.
	strangerBytes, strangersShare = 29 << 10, 64
	// fewestStrangers and mostStrangers bound how many there may be: clients are strangers for a moment each, and every one has a file descriptor.
	fewestStrangers, mostStrangers = 256, 4096
)

// maxStrangers is how many connections may be open over which no request was authenticated.
func maxStrangers(memory int64) int {
	return int(min(max(memory/strangersShare/strangerBytes, fewestStrangers), mostStrangers))
}

// boundStrangers bounds these connections on the API's port. Whoever wants an answer without saying who it is, such as a load balancer that asks for /readyz, has it: a
// connection is only closed when there are many younger ones.
func boundStrangers(o *Options) *halfopen.Listener {
	if o.Listener == nil {
		return nil
	}
	memory, err := memlimit.Self()
	if err != nil {
		o.Logger.Warn("it is not known how much memory there is; few connections may be open over which nobody has authenticated", "error", err)
	}
	l := halfopen.NewListener(o.Listener, cmp.Or(o.strangers, maxStrangers(memory.Bytes)))
	o.Listener = l
	return l
}

// identifying is upstream's authentication, which tells the listener of connections that have an authenticated request.
type identifying struct {
	authenticator.Request
	listener *halfopen.Listener
}

// AuthenticateRequest implements authenticator.Request.
func (i identifying) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	answer, ok, err := i.Request.AuthenticateRequest(r)
	if ok && err == nil && answer.User.GetName() != user.Anonymous {
		i.listener.Identified(r.RemoteAddr)
	}
	return answer, ok, err
}
