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
)

const (
	// maxFound is how many machines an answer names.
	maxFound = 8
	// maxHave is how many digests of a machine are known. maxAsked is how many are kept that it has asked for.
	maxHave  = 4096
	maxAsked = 1024
	// learnTimeout limits the wait for the content of machines that is not known, and learnAtOnce how many are asked at
	// a time.
	learnTimeout = 2 * time.Second
	learnAtOnce  = 16
	// learnedFor is how long that content counts as known when no machine is known to have a blob: an archive may have
	// been imported since. A machine that did not say what it has is asked again after
	// unlearnedFor.
	learnedFor   = 15 * time.Second
	unlearnedFor = time.Minute
	// positionFor is how long after its last question a machine keeps its place among the askers. After that it does
	// not wait for the blob any more: it has lost it since.
	positionFor = time.Hour
)

// tracker is a server's record of which machines have which blobs. Machines that asked for a blob count as having it: a
// machine passes on what it is still receiving.
type tracker struct {
	// sessions returns the connected machines by name, each with what identifies its present connection.
	sessions func() map[string]any
	// learn requests the content of a machine.
	learn func(ctx context.Context, node string) ([]uint64, error)

	began   time.Time
	running sync.WaitGroup // of learnFrom

	mu       sync.Mutex
	machines map[string]*tracked
	last     uint32        // the last position that was given
	learning chan struct{} // closed when the machines that are being asked have answered; nil if none are
}

// tracked is what is known of a machine. With 200 blobs it takes 5 kB.
type tracked struct {
	session any           // nil while it is not connected
	have    []uint64      // sorted
	stale   time.Duration // since tracker.began, when have no longer counts as known
	asked   []asked       // the oldest first
}

// asked is a machine's question for a blob.
type asked struct {
	blob     uint64
	position uint32 // in the order of all first questions
	seconds  uint32 // since tracker.began, of the last question
}

func newTracker(sessions func() map[string]any, learn func(ctx context.Context, node string) ([]uint64, error)) *tracker {
	return &tracker{sessions: sessions, learn: learn, machines: map[string]*tracked{}, began: time.Now()}
}

// find returns machines that have a blob or are receiving it: first those that have all of it. None means that the
// asker is to fetch it from outside. Of those that asked, only earlier ones are named, so that no two machines wait for
// each other.
func (t *tracker) find(ctx context.Context, asker string, d digest.Digest, exclude []string) []string {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	key := prefix(d)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.follow(t.sessions())
	position := t.record(asker, key)
	for {
		found, known := t.holders(asker, key, position, exclude)
		unknown := t.unknown(known)
		if len(found) > 0 || len(unknown) == 0 || ctx.Err() != nil {
			return found
		}
		answered := t.learning
		if answered == nil {
			answered = make(chan struct{})
			t.learning = answered
			t.running.Go(func() { t.learnFrom(unknown, answered) })
		}
		t.mu.Unlock()
		select {
		case <-answered:
		case <-ctx.Done():
		}
		t.mu.Lock()
	}
}

// follow notes which machines are connected. It forgets the content of the others, and what they asked for after a
// while: a machine that connects again may still be receiving it.
func (t *tracker) follow(sessions map[string]any) {
	for name, s := range sessions {
		if m := t.machine(name); m.session != s {
			m.session, m.have, m.stale = s, nil, 0
		}
	}
	for name, m := range t.machines {
		if _, connected := sessions[name]; connected {
			continue
		}
		m.session, m.have = nil, nil
		if len(m.asked) == 0 || t.seconds()-m.asked[len(m.asked)-1].seconds > uint32(positionFor.Seconds()) {
			delete(t.machines, name)
		}
	}
}

func (t *tracker) machine(name string) *tracked {
	m := t.machines[name]
	if m == nil {
		m = &tracked{}
		t.machines[name] = m
	}
	return m
}

func (t *tracker) seconds() uint32 { return uint32(time.Since(t.began).Seconds()) }

// record records a question, and returns the asker's position.
func (t *tracker) record(asker string, key uint64) uint32 {
	m, now := t.machine(asker), t.seconds()
	if i, had := slices.BinarySearch(m.have, key); had {
		m.have = slices.Delete(m.have, i, i+1) // it has lost the blob
	}
	i := slices.IndexFunc(m.asked, func(a asked) bool { return a.blob == key })
	if i >= 0 && now-m.asked[i].seconds <= uint32(positionFor.Seconds()) {
		m.asked[i].seconds = now
		return m.asked[i].position
	}
	if i < 0 && len(m.asked) >= maxAsked {
		i = 0
	}
	if i >= 0 {
		m.asked = slices.Delete(m.asked, i, i+1)
	}
	t.last++
	m.asked = append(m.asked, asked{key, t.last, now})
	return t.last
}

// holders returns up to maxFound machines other than the excluded ones: first those that have the blob, in random
// order, then those that asked for it earlier. known says that there are such machines, excluded or not.
func (t *tracker) holders(asker string, key uint64, position uint32, exclude []string) (found []string, known bool) {
	var whole, receiving []string
	for name, m := range t.machines {
		if name == asker || m.session == nil {
			continue
		}
		_, has := slices.BinarySearch(m.have, key)
		earlier := slices.ContainsFunc(m.asked, func(a asked) bool { return a.blob == key && a.position < position })
		known = known || has || earlier
		switch {
		case slices.Contains(exclude, name):
		case has:
			whole = append(whole, name)
		case earlier:
			receiving = append(receiving, name)
		}
	}
	for _, names := range [][]string{whole, receiving} {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	}
	found = append(whole, receiving...)
	return found[:min(len(found), maxFound)], known
}

// unknown returns the connected machines whose content is not known, with their sessions. What a machine had some time
// ago is enough if other machines are known to have the blob.
func (t *tracker) unknown(blobKnown bool) map[string]any {
	out, now := map[string]any{}, time.Since(t.began)
	for name, m := range t.machines {
		if m.session != nil && now >= m.stale && (m.stale == 0 || !blobKnown) {
			out[name] = m.session
		}
	}
	return out
}

// learnFrom requests the content of machines, and closes answered.
func (t *tracker) learnFrom(sessions map[string]any, answered chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), learnTimeout)
	defer cancel()
	var asking sync.WaitGroup
	free := make(chan struct{}, learnAtOnce)
	for name, session := range sessions {
		free <- struct{}{}
		asking.Go(func() {
			defer func() { <-free }()
			have, err := t.learn(ctx, name)
			slices.Sort(have)
			t.mu.Lock()
			defer t.mu.Unlock()
			if m := t.machines[name]; m != nil && m.session == session {
				m.learned(have, err, time.Since(t.began))
			}
		})
	}
	asking.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.learning = nil
	close(answered)
}

// learned replaces the content of a machine, if that could be learned. Questions for what it has are then of no more
// use.
func (m *tracked) learned(have []uint64, err error, now time.Duration) {
	if m.stale = now + unlearnedFor; err != nil {
		return
	}
	m.have, m.stale = have, now+learnedFor
	m.asked = slices.DeleteFunc(m.asked, func(a asked) bool {
		_, has := slices.BinarySearch(have, a.blob)
		return has
	})
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
