// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// A machine that finds no member at any address that it knows asks its own network, by multicast, for the servers.
// Machines with the cluster's gossip key reply, to the machine that asked:
//
//	datagram:  magic "CRS1", nonce (12), sealed text (AES-256-GCM, the magic is authenticated too)
//	text:      kind, challenge (16), number of servers, then each one's address: its length (4 or 16), it, port (2); zeros
//	           up to textSize
//
// Question and reply have the same size, so that no machine is flooded by replies to questions with a false sender. The
// challenge is random and a reply repeats it: so a recorded reply is not accepted, and a machine that remembers a
// question (seen) does not reply to its repetition.
const (
	searchMagic   = "CRS1" // memberlist's datagrams begin with other bytes
	challengeSize = 16
	textSize      = 200
	nonceSize     = 12
	datagramSize  = len(searchMagic) + nonceSize + textSize + 16

	kindQuestion = 1
	kindAnswer   = 2

	// maxFound is how many servers a reply names. A cluster has seven at most.
	maxFound = 8
)

type challenge [challengeSize]byte

// searchText is the content of a datagram of the search: a question, or the answer with the addresses of servers.
type searchText struct {
	kind      byte
	challenge challenge
	servers   []netip.AddrPort
}

func newQuestion() (searchText, error) {
	q := searchText{kind: kindQuestion}
	if _, err := rand.Read(q.challenge[:]); err != nil {
		return q, fmt.Errorf("gossip: make a question: %w", err)
	}
	return q, nil
}

// searchCiphers returns the ciphers of a cluster's gossip keys, the one to send with first. The keys of the ciphers are
// derived, so that neither memberlist's packets nor these datagrams can be taken for the other.
func searchCiphers(keys clusterconfig.GossipKeys) ([]cipher.AEAD, error) {
	var out []cipher.AEAD
	for _, k := range keys.Keys {
		derived, err := hkdf.Key(sha256.New, k, nil, "coracle search for servers "+searchMagic, 32)
		if err != nil {
			return nil, fmt.Errorf("gossip: derive a key: %w", err)
		}
		block, err := aes.NewCipher(derived)
		if err != nil {
			return nil, fmt.Errorf("gossip: derive a key: %w", err)
		}
		seal, err := cipher.NewGCM(block)
		if err != nil {
			return nil, fmt.Errorf("gossip: derive a key: %w", err)
		}
		out = append(out, seal)
	}
	return out, nil
}

// datagram returns the encrypted datagram of a question or an answer. All datagrams have the same length.
func (t *searchText) datagram(seal cipher.AEAD) ([]byte, error) {
	text := make([]byte, 0, textSize)
	text = append(append(text, t.kind), t.challenge[:]...)
	servers := t.servers[:min(len(t.servers), maxFound)]
	text = append(text, byte(len(servers)))
	for _, s := range servers {
		ip := s.Addr().Unmap().AsSlice()
		text = append(append(text, byte(len(ip))), ip...)
		text = binary.BigEndian.AppendUint16(text, s.Port())
	}
	text = text[:textSize] // the rest is zero
	out := append([]byte(searchMagic), make([]byte, nonceSize)...)
	nonce := out[len(searchMagic):]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("gossip: seal a datagram: %w", err)
	}
	return seal.Seal(out, nonce, text, []byte(searchMagic)), nil
}

// isSearch distinguishes these datagrams from memberlist's.
func isSearch(b []byte) bool {
	return len(b) >= len(searchMagic) && string(b[:len(searchMagic)]) == searchMagic
}

var errNoSearch = errors.New("gossip: not a datagram of this cluster")

// openSearch decrypts a datagram, which may be any bytes, and returns the cipher of the key with which it was
// encrypted.
func openSearch(seals []cipher.AEAD, b []byte) (searchText, cipher.AEAD, error) {
	if len(b) != datagramSize || !isSearch(b) {
		return searchText{}, nil, errNoSearch
	}
	nonce, sealed := b[len(searchMagic):len(searchMagic)+nonceSize], b[len(searchMagic)+nonceSize:]
	for _, seal := range seals {
		if text, err := seal.Open(nil, nonce, sealed, []byte(searchMagic)); err == nil {
			t, err := decodeSearch(text)
			return t, seal, err
		}
	}
	return searchText{}, nil, errNoSearch
}

func decodeSearch(text []byte) (searchText, error) {
	var t searchText
	if len(text) < 2+challengeSize {
		return t, errNoSearch
	}
	t.kind = text[0]
	copy(t.challenge[:], text[1:])
	count, rest := int(text[1+challengeSize]), text[2+challengeSize:]
	if t.kind != kindQuestion && t.kind != kindAnswer || count > maxFound {
		return searchText{}, errNoSearch
	}
	for range count {
		if len(rest) == 0 || len(rest) < 1+int(rest[0])+2 {
			return searchText{}, errNoSearch
		}
		ip, ok := netip.AddrFromSlice(rest[1 : 1+int(rest[0])])
		if !ok {
			return searchText{}, errNoSearch
		}
		rest = rest[1+int(rest[0]):]
		at := netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(rest))
		rest = rest[2:]
		if checkAddress(at) == nil {
			t.servers = append(t.servers, at)
		}
	}
	return t, nil
}
