// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// maxVerified limits how many verified logins are remembered for one set of users.
const maxVerified = 4096

// userSet is one section of users. Routes hold a pointer to it, so that a change of the Secret rebuilds no route.
type userSet struct {
	list atomic.Pointer[userList] // nil while the section is absent or bad
	shared
}

// userList does not change, except for the logins in verified.
type userList struct {
	hashes map[string]string

	mu       sync.Mutex
	verified map[[sha256.Size]byte]struct{}
}

// authentication decides whether a client's request may pass to the route's backends.
type authentication struct {
	*request
	*response
	granted  http.Header // of the authentication server's response
	verified string      // the result of the check of the client's certificate; empty where none is asked for
}

// access reports whether the request may pass. If it may not, access has answered it.
func (a *authentication) access(r *route) bool {
	p := r.policy
	inside := false
	if len(p.allow)+len(p.deny) > 0 {
		client := a.client()
		_, err := netip.ParseAddr(client)
		if len(p.deny) > 0 && (err != nil || inNetworks(client, p.deny)) {
			a.answer(http.StatusForbidden, "the client's address is not let in")
			return false
		}
		inside = len(p.allow) > 0 && inNetworks(client, p.allow)
	}
	switch {
	case inside && p.SatisfyAny:
		return true
	case len(p.allow) > 0 && !inside && !(p.SatisfyAny && (p.users != nil || p.external != nil)):
		a.answer(http.StatusForbidden, "the client's address is not let in")
		return false
	}
	if p.users != nil {
		switch good, answered := a.login(p); {
		case answered:
			return false
		case good && p.SatisfyAny:
			return true
		case !good && !(p.SatisfyAny && p.external != nil):
			a.writer.Header().Set("WWW-Authenticate", `Basic realm="`+p.Basic.Realm+`"`)
			a.answer(http.StatusUnauthorized, "a name and a password are needed")
			return false
		}
	}
	return p.external == nil || a.askServer(r)
}

// login reports whether the request has the name and the password of a user. answered says that login has answered it.
func (a *authentication) login(p *policy) (good, answered bool) {
	list := p.users.list.Load()
	if list == nil {
		a.answer(http.StatusServiceUnavailable, "the users of this route are not known; the events of its object say why")
		return false, true
	}
	user, secret, ok := a.in.BasicAuth()
	if !ok {
		return false, false
	}
	good, err := a.proxy.comparisons.verify(a.in.Context(), namespaceOf(p.Basic.Users), list, user, secret)
	if err != nil {
		a.answer(http.StatusServiceUnavailable, err.Error())
	}
	return good, err != nil
}

func (o *objects) applyUsers(key string, value json.RawMessage, present bool) error {
	s := objectOf(o.users, key)
	s.present = present
	s.list.Store(nil)
	if !present {
		return nil
	}
	var from table.Users
	if err := unmarshalStrict(value, &from); err != nil {
		return fmt.Errorf("reading users: %w", err)
	}
	s.list.Store(&userList{hashes: from.Hashes, verified: map[[sha256.Size]byte]struct{}{}})
	return nil
}
