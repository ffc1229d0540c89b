// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coracle-k8s/coracle/internal/level"
)

// Role is a machine's role in the cluster.
type Role uint8

// The roles. A role that a newer version added is kept as its number.
const (
	RoleServer Role = 1
	RoleAgent  Role = 2
)

// String returns the name of the role's command.
func (r Role) String() string {
	switch r {
	case RoleServer:
		return "server"
	case RoleAgent:
		return "agent"
	}
	return "unknown"
}

// Meta is the metadata that a member publishes. Its name, the node's, is not included.
type Meta struct {
	Role Role
	// API is where a server's API is reached. It is empty on an agent.
	API []netip.AddrPort
	// Addresses are the node's, one of each family.
	Addresses []netip.Addr
	// PodSubnets are those of the node's pods. It is empty before the node has some.
	PodSubnets []netip.Prefix
	// Version is the product's version, Protocol the version of its machines' protocol (internal/version).
	Version  string
	Protocol uint64
	// KeyGeneration is the generation of the member's keys.
	KeyGeneration uint64
	// Level is the newest level of the cluster that the program knows, and Running the level with which it started. A
	// member that publishes none has the first level.
	Level, Running uint64
}

// The encoding: the format's number, then fields, each with a tag, the length of its value, and the value. A reader
// skips unknown tags, so a new field needs no new format. Lists repeat their tag.
const (
	metaFormat = 1

	tagRole          = 1
	tagAPI           = 2 // 4 or 16 bytes of address, 2 of port
	tagAddress       = 3
	tagPodSubnet     = 4 // the prefix's length in bits, then the address
	tagVersion       = 5
	tagProtocol      = 6
	tagKeyGeneration = 7
	tagLevel         = 8 // left out for the first level, as the next one
	tagRunning       = 9
)

// Limits of the metadata, so that it always fits into memberlist.MetaMaxSize.
const (
	maxAddresses   = 4
	maxPodSubnets  = 8
	maxVersionText = 64
)

// encode encodes m. It omits what is beyond the limits.
func (m *Meta) encode() []byte {
	out := []byte{metaFormat}
	field := func(tag uint64, value []byte) { out = protowire.AppendBytes(protowire.AppendVarint(out, tag), value) }
	field(tagRole, []byte{byte(m.Role)})
	for _, a := range m.API[:min(len(m.API), maxAddresses)] {
		field(tagAPI, binary.BigEndian.AppendUint16(a.Addr().Unmap().AsSlice(), a.Port()))
	}
	for _, a := range m.Addresses[:min(len(m.Addresses), maxAddresses)] {
		field(tagAddress, a.Unmap().AsSlice())
	}
	for _, p := range m.PodSubnets[:min(len(m.PodSubnets), maxPodSubnets)] {
		field(tagPodSubnet, append([]byte{byte(p.Bits())}, p.Addr().AsSlice()...))
	}
	field(tagVersion, []byte(m.Version[:min(len(m.Version), maxVersionText)]))
	field(tagProtocol, protowire.AppendVarint(nil, m.Protocol))
	field(tagKeyGeneration, protowire.AppendVarint(nil, m.KeyGeneration))
	if m.Level > level.First {
		field(tagLevel, protowire.AppendVarint(nil, m.Level))
	}
	if m.Running > level.First {
		field(tagRunning, protowire.AppendVarint(nil, m.Running))
	}
	return out
}

// decodeMeta decodes another member's metadata, which may be any bytes.
func decodeMeta(data []byte) (Meta, error) {
	var m Meta
	if len(data) > memberlist.MetaMaxSize {
		return m, fmt.Errorf("gossip: %d bytes of metadata", len(data))
	}
	if len(data) == 0 || data[0] != metaFormat {
		return m, errors.New("gossip: metadata in an unknown format")
	}
	for data = data[1:]; len(data) > 0; {
		tag, n := protowire.ConsumeVarint(data)
		value, size := protowire.ConsumeBytes(data[max(n, 0):])
		if n < 0 || size < 0 {
			return Meta{}, errors.New("gossip: the metadata end within a field")
		}
		data = data[n+size:]
		if !m.decodeField(tag, value) {
			return Meta{}, fmt.Errorf("gossip: metadata with %d bytes in the field %d", len(value), tag)
		}
	}
	m.Level, m.Running = boundLevel(m.Level), boundLevel(m.Running)
	m.API = m.API[:min(len(m.API), maxAddresses)] // no more than a member of this version would send
	m.Addresses = m.Addresses[:min(len(m.Addresses), maxAddresses)]
	m.PodSubnets = m.PodSubnets[:min(len(m.PodSubnets), maxPodSubnets)]
	return m, nil
}

// boundLevel returns a level that a member publishes as one that can be: a number that a program counts with, and never
// less than the first one.
func boundLevel(published uint64) uint64 { return min(max(published, level.First), math.MaxInt32) }

// decodeField decodes one field, and returns whether it is well-formed. An unknown field is.
func (m *Meta) decodeField(tag uint64, value []byte) (ok bool) {
	var ip netip.Addr
	switch tag {
	case tagRole:
		if ok = len(value) == 1; ok {
			m.Role = Role(value[0])
		}
	case tagAPI:
		if ip, ok = netip.AddrFromSlice(value[:max(len(value)-2, 0)]); ok {
			m.API = append(m.API, netip.AddrPortFrom(ip, binary.BigEndian.Uint16(value[len(value)-2:])))
		}
	case tagAddress:
		ip, ok = netip.AddrFromSlice(value)
		m.Addresses = append(m.Addresses, ip)
	case tagPodSubnet:
		if ip, ok = netip.AddrFromSlice(value[min(len(value), 1):]); ok {
			p := netip.PrefixFrom(ip, int(value[0]))
			m.PodSubnets, ok = append(m.PodSubnets, p), p.IsValid()
		}
	case tagVersion:
		m.Version, ok = printable(value), true
	case tagProtocol:
		m.Protocol, ok = decodeNumber(value)
	case tagKeyGeneration:
		m.KeyGeneration, ok = decodeNumber(value)
	case tagLevel:
		m.Level, ok = decodeNumber(value)
	case tagRunning:
		m.Running, ok = decodeNumber(value)
	default:
		ok = true
	}
	return ok
}

func decodeNumber(value []byte) (uint64, bool) {
	n, size := protowire.ConsumeVarint(value)
	return n, size == len(value)
}

// printable returns the characters of a text that are harmless in a log and on a terminal.
func printable(text []byte) string {
	return strings.Map(func(c rune) rune {
		if c > ' ' && c < 0x7f {
			return c
		}
		return -1
	}, string(text[:min(len(text), maxVersionText)]))
}
