// SPDX-License-Identifier: Apache-2.0

package console

import (
	"crypto/sha256"
	"sync"
)

// socketLimit limits the WebSockets of all users and of each user.
type socketLimit struct {
	mu     sync.Mutex
	total  int
	byUser map[[sha256.Size]byte]int // by a hash of the user
}

func newSocketLimit() *socketLimit { return &socketLimit{byUser: map[[sha256.Size]byte]int{}} }

// acquire counts a WebSocket of a user. It returns false when there are too many.
func (l *socketLimit) acquire(user string) (release func(), ok bool) {
	key := sha256.Sum256([]byte(user))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= maxSockets || l.byUser[key] >= userSockets {
		return nil, false
	}
	l.total++
	l.byUser[key]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.total--
		if l.byUser[key]--; l.byUser[key] == 0 {
			delete(l.byUser, key)
		}
	}, true
}

func (l *socketLimit) hasSockets() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total > 0
}
