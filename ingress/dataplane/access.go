// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/password"
	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// maxVerified limits how many verified logins are remembered for one set of users.
	maxVerified = 4096
	// hashPatience is the value of Proxy.hashWait, except in tests.
	hashPatience = 10 * time.Second
)

// userSet is one section of users. Routes hold a pointer to it, so that a change of the Secret rebuilds no route.
type userSet struct {
	list atomic.Pointer[userList] // nil while the section is absent or bad
	// turn lets one login of the namespace at a time wait for a processor. A flood of guesses for the routes of one
	// tenant thus does not lock out the users of others.
	turn chan struct{}
	// mark is the sweep that last found the set in use. Apply owns it.
	mark uint64
	// present says that the table has a section for the set. Apply owns it.
	present bool
}

// userList does not change, except for the logins in verified.
type userList struct {
	hashes map[string]string

	mu       sync.Mutex
	verified map[[sha256.Size]byte]struct{}
}

// access reports whether the request may pass. If it may not, access has answered it.
func (x *exchange) access(r *route) bool {
	p := r.policy
	inside := false
	if len(p.allow)+len(p.deny) > 0 {
		client := x.client()
		_, err := netip.ParseAddr(client)
		if len(p.deny) > 0 && (err != nil || within(client, p.deny)) {
			x.answer(http.StatusForbidden, "the client's address is not let in")
			return false
		}
		inside = len(p.allow) > 0 && within(client, p.allow)
	}
	switch {
	case inside && p.SatisfyAny:
		return true
	case len(p.allow) > 0 && !inside && !(p.SatisfyAny && (p.users != nil || p.external != nil)):
		x.answer(http.StatusForbidden, "the client's address is not let in")
		return false
	}
	if p.users != nil {
		switch good, answered := x.login(p); {
		case answered:
			return false
		case good && p.SatisfyAny:
			return true
		case !good && !(p.SatisfyAny && p.external != nil):
			x.w.Header().Set("WWW-Authenticate", `Basic realm="`+p.Basic.Realm+`"`)
			x.answer(http.StatusUnauthorized, "a name and a password are needed")
			return false
		}
	}
	return p.external == nil || x.admit(r)
}

// login reports whether the request has the name and the password of a user. answered says that login has answered it.
func (x *exchange) login(p *policy) (good, answered bool) {
	list := p.users.list.Load()
	if list == nil {
		x.answer(http.StatusServiceUnavailable, "the users of this route are not known; the events of its object say why")
		return false, true
	}
	user, secret, ok := x.in.BasicAuth()
	if !ok {
		return false, false
	}
	good, err := x.proxy.verify(x, p.users.turn, list, user, secret)
	if err != nil {
		x.answer(http.StatusServiceUnavailable, err.Error())
	}
	return good, err != nil
}

// verify compares a password. It remembers correct logins, by a keyed hash, since a comparison takes up to a second. It
// does not remember wrong ones. Few comparisons run at a time.
func (p *Proxy) verify(x *exchange, turn chan struct{}, list *userList, user, secret string) (bool, error) {
	hash, ok := list.hashes[user]
	if !ok {
		return false, nil
	}
	mac := hmac.New(sha256.New, p.memory[:])
	fmt.Fprintf(mac, "%d %s%s", len(user), user, secret)
	key := [sha256.Size]byte(mac.Sum(nil))
	list.mu.Lock()
	_, known := list.verified[key]
	list.mu.Unlock()
	if known {
		return true, nil
	}
	wait := time.NewTimer(p.hashWait)
	defer wait.Stop()
	for _, place := range [...]chan struct{}{turn, p.hashing} {
		select {
		case place <- struct{}{}:
			defer func() { <-place }()
		case <-x.in.Context().Done():
			panic(http.ErrAbortHandler)
		case <-wait.C:
			return false, fmt.Errorf("too many passwords are being compared")
		}
	}
	good := password.Verify(hash, secret)
	if good {
		list.mu.Lock()
		if len(list.verified) >= maxVerified {
			clear(list.verified)
		}
		list.verified[key] = struct{}{}
		list.mu.Unlock()
	}
	return good, nil
}

func (p *Proxy) applyUsers(key string, value json.RawMessage, present bool) error {
	s := p.userSet(key)
	s.present = present
	s.list.Store(nil)
	if !present {
		return nil
	}
	var from table.Users
	if err := strict(value, &from); err != nil {
		return fmt.Errorf("reading users: %w", err)
	}
	s.list.Store(&userList{hashes: from.Hashes, verified: map[[sha256.Size]byte]struct{}{}})
	return nil
}

// userSet returns the user set of a section, which need not exist yet.
func (p *Proxy) userSet(key string) *userSet {
	s := p.users[key]
	if s == nil {
		namespace := namespaceOf(key)
		if p.turns[namespace] == nil {
			p.turns[namespace] = make(chan struct{}, 1)
		}
		s = &userSet{turn: p.turns[namespace]}
		p.users[key] = s
	}
	return s
}
