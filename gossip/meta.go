// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// Role is what a machine is in the cluster.
type Role uint8

// The roles. A role that a newer version added is kept as its number.
const (
	RoleServer Role = 1
	RoleAgent  Role = 2
)

// String writes the role as the command is called.
func (r Role) String() string {
	switch r {
	case RoleServer:
		return "server"
	case RoleAgent:
		return "agent"
	}
	return "unknown"
}

// Meta is what a member says of itself. Its name, the node's, is beside it.
type Meta struct {
	Role Role
	// API is where a server's API is reached; none on an agent.
	API []netip.AddrPort
	// Addresses are the node's, one of each family.
	Addresses []netip.Addr
	// PodSubnets are those of the node's pods; none before the node has some.
	PodSubnets []netip.Prefix
	// Version is the product's, Protocol that of what its machines say to one another (internal/version).
	Version  string
	Protocol uint64
	// KeyGeneration is that of the keys that the member has.
	KeyGeneration uint64
}

// The form in bytes: the format's number, then fields, each a tag, the length of what follows, and that. A reader skips
// tags that it does not know, so a new field needs no new format. Lists repeat their tag.
const (
	metaFormat = 1

	tagRole          = 1
	tagAPI           = 2 // 4 or 16 bytes of address, 2 of port
	tagAddress       = 3
	tagPodSubnet     = 4 // the prefix's length in bits, then the address
	tagVersion       = 5
	tagProtocol      = 6
	tagKeyGeneration = 7
)

// What a member says at most, so that it always fits into memberlist.MetaMaxSize.
const (
	maxAddresses   = 4
	maxPodSubnets  = 8
	maxVersionText = 64
)

// encode writes m; what is beyond the bounds is left out.
func (m *Meta) encode() []byte {
	out := []byte{metaFormat}
	field := func(tag uint64, value []byte) {
		out = binary.AppendUvarint(out, tag)
		out = binary.AppendUvarint(out, uint64(len(value)))
		out = append(out, value...)
	}
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
	field(tagProtocol, binary.AppendUvarint(nil, m.Protocol))
	field(tagKeyGeneration, binary.AppendUvarint(nil, m.KeyGeneration))
	return out
}

var errShortMeta = errors.New("gossip: the metadata end within a field")

// decodeMeta reads what a member said of itself. It may be anything.
func decodeMeta(data []byte) (Meta, error) {
	var m Meta
	if len(data) > memberlist.MetaMaxSize {
		return m, fmt.Errorf("gossip: %d bytes of metadata", len(data))
	}
	if len(data) == 0 || data[0] != metaFormat {
		return m, errors.New("gossip: metadata of a form that this version does not know")
	}
	for data = data[1:]; len(data) > 0; {
		tag, n := binary.Uvarint(data)
		if n <= 0 {
			return Meta{}, errShortMeta
		}
		data = data[n:]
		length, n := binary.Uvarint(data)
		if n <= 0 || length > uint64(len(data)-n) {
			return Meta{}, errShortMeta
		}
		value := data[n : n+int(length)]
		data = data[n+int(length):]
		if err := m.decodeField(tag, value); err != nil {
			return Meta{}, err
		}
	}
	m.API = m.API[:min(len(m.API), maxAddresses)] // no more than a member of this version would say
	m.Addresses = m.Addresses[:min(len(m.Addresses), maxAddresses)]
	m.PodSubnets = m.PodSubnets[:min(len(m.PodSubnets), maxPodSubnets)]
	return m, nil
}

// decodeField takes one field.
func (m *Meta) decodeField(tag uint64, value []byte) error {
	bad := fmt.Errorf("gossip: metadata with %d bytes in the field %d", len(value), tag)
	switch tag {
	case tagRole:
		if len(value) != 1 {
			return bad
		}
		m.Role = Role(value[0])
	case tagAPI:
		if len(value) < 2 {
			return bad
		}
		ip, ok := netip.AddrFromSlice(value[:len(value)-2])
		if !ok {
			return bad
		}
		m.API = append(m.API, netip.AddrPortFrom(ip, binary.BigEndian.Uint16(value[len(value)-2:])))
	case tagAddress:
		ip, ok := netip.AddrFromSlice(value)
		if !ok {
			return bad
		}
		m.Addresses = append(m.Addresses, ip)
	case tagPodSubnet:
		if len(value) == 0 {
			return bad
		}
		ip, ok := netip.AddrFromSlice(value[1:])
		p := netip.PrefixFrom(ip, int(value[0]))
		if !ok || !p.IsValid() {
			return bad
		}
		m.PodSubnets = append(m.PodSubnets, p)
	case tagVersion:
		m.Version = printable(value)
	case tagProtocol, tagKeyGeneration:
		n, size := binary.Uvarint(value)
		if size != len(value) || size == 0 {
			return bad
		}
		if tag == tagProtocol {
			m.Protocol = n
		} else {
			m.KeyGeneration = n
		}
	}
	return nil
}

// printable keeps of a text what does no harm in a log or on a terminal.
func printable(text []byte) string {
	out := make([]byte, 0, min(len(text), maxVersionText))
	for _, c := range text[:min(len(text), maxVersionText)] {
		if c > ' ' && c < 0x7f {
			out = append(out, c)
		}
	}
	return string(out)
}
