// SPDX-License-Identifier: Apache-2.0

package content

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
)

const (
	// maxFound is how many machines an answer names.
	maxFound = 8
	// maxHave is how many digests of a machine are known.
	maxHave = 4096
	// maxAskers bounds the record of who asked for which blob, over all blobs. The oldest blobs are forgotten.
	maxAskers = 20_000
	// learnTimeout limits the wait for the content of machines that is not known yet, and learnAtOnce how many are
	// asked at a time.
	learnTimeout = 2 * time.Second
	learnAtOnce  = 16
)

// tracker is a server's record of which machines have which blobs. Machines that asked for a blob count as having it: a
// machine passes on what it is still receiving.
type tracker struct {
	// sessions returns the connected machines by name, each with what identifies its present connection.
	sessions func() map[string]any
	// learn requests the content of a machine.
	learn func(ctx context.Context, node string) ([]uint64, error)

	learning singleflight.Group

	mu     sync.Mutex
	known  map[string]known
	asked  map[uint64]*askers
	order  []uint64 // the blobs of asked, the oldest first
	askers int      // of all blobs
}

// known is what a machine had when it connected.
type known struct {
	session any
	have    []uint64 // sorted
}

// askers are the machines that asked for a blob, in the order of their first question.
type askers struct{ names []string }

func newTracker(sessions func() map[string]any, learn func(ctx context.Context, node string) ([]uint64, error)) *tracker {
	return &tracker{sessions: sessions, learn: learn, known: map[string]known{}, asked: map[uint64]*askers{}}
}

// find returns machines that have a blob or are receiving it: first those that have all of it. None means that the
// asker is to fetch it from outside. Of those that asked, only earlier ones are named, so that no two machines wait for
// each other.
func (t *tracker) find(ctx context.Context, asker string, d digest.Digest, exclude []string) []string {
	sessions := t.sessions()
	t.learnFrom(ctx, sessions)
	key := prefix(d)
	usable := func(name string) bool {
		_, connected := sessions[name]
		return connected && name != asker && !slices.Contains(exclude, name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var whole, receiving []string
	for name, k := range t.known {
		if _, has := slices.BinarySearch(k.have, key); has && usable(name) {
			whole = append(whole, name)
		}
	}
	for _, name := range t.earlier(key, asker) {
		if usable(name) && !slices.Contains(whole, name) {
			receiving = append(receiving, name)
		}
	}
	for _, names := range [][]string{whole, receiving} {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	}
	found := append(whole, receiving...)
	return found[:min(len(found), maxFound)]
}

// earlier returns the machines that asked for a blob before the asker did, which is recorded. The caller holds mu.
func (t *tracker) earlier(key uint64, asker string) []string {
	a := t.asked[key]
	if a == nil {
		a = &askers{}
		t.asked[key], t.order = a, append(t.order, key)
	}
	if i := slices.Index(a.names, asker); i >= 0 {
		return a.names[:i]
	}
	before := a.names
	a.names = append(a.names, asker)
	for t.askers++; t.askers > maxAskers && len(t.order) > 1; t.order = t.order[1:] {
		t.askers -= len(t.asked[t.order[0]].names)
		delete(t.asked, t.order[0])
	}
	return before
}

// learnFrom requests the content of machines that have connected since it was last requested, and forgets machines
// that are gone.
func (t *tracker) learnFrom(ctx context.Context, sessions map[string]any) {
	var unknown []string
	t.mu.Lock()
	for name := range t.known {
		if _, connected := sessions[name]; !connected {
			delete(t.known, name)
		}
	}
	for name, s := range sessions {
		if k, ok := t.known[name]; !ok || k.session != s {
			unknown = append(unknown, name)
		}
	}
	t.mu.Unlock()
	if len(unknown) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	var asking sync.WaitGroup
	free := make(chan struct{}, learnAtOnce)
	for _, name := range unknown {
		asking.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			if ctx.Err() != nil {
				return // the next question asks it
			}
			_, _, _ = t.learning.Do(name, func() (any, error) { // its failure is recorded as no content
				have, _ := t.learn(ctx, name)
				slices.Sort(have)
				t.mu.Lock()
				defer t.mu.Unlock()
				t.known[name] = known{sessions[name], have}
				return nil, nil
			})
		})
	}
	asking.Wait()
}

// prefixes returns the first eight bytes of digests, of maxHave at most.
func prefixes(all []digest.Digest) (out []uint64) {
	for _, d := range all[:min(len(all), maxHave)] {
		out = append(out, prefix(d))
	}
	return out
}

// encodeHave returns prefixes as 8 bytes each.
func encodeHave(all []digest.Digest) (out []byte) {
	for _, p := range prefixes(all) {
		out = binary.BigEndian.AppendUint64(out, p)
	}
	return out
}

// readHave reads what encodeHave made.
func readHave(answer *http.Response) (have []uint64, err error) {
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("content: a machine does not say what it has: %s", answer.Status)
	}
	data, err := io.ReadAll(io.LimitReader(answer.Body, 8*maxHave))
	if err != nil {
		return nil, fmt.Errorf("content: read what a machine has: %w", err)
	}
	for ; len(data) >= 8; data = data[8:] {
		have = append(have, binary.BigEndian.Uint64(data))
	}
	return have, nil
}
