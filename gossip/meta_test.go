// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var fullMeta = Meta{
	Role:      RoleServer,
	API:       []netip.AddrPort{netip.MustParseAddrPort("10.0.0.5:6443"), netip.MustParseAddrPort("[fd00::5]:6443")},
	Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")},
	PodSubnets: []netip.Prefix{
		netip.MustParsePrefix("10.42.7.0/24"), netip.MustParsePrefix("fd00:42::/64"),
	},
	Version: "v1.2.3+4567", Protocol: 300, KeyGeneration: 1 << 40, Level: 200, Running: 199,
}

func TestMetadataIsDecodedAndBounded(t *testing.T) {
	data := fullMeta.encode()
	got, err := decodeMeta(data)
	testenv.False(t, err != nil || !reflect.DeepEqual(got, fullMeta), "%v\n got %+v\nwant %+v", err, got, fullMeta)
	// What a newer version adds is skipped.
	later := append(append([]byte{}, data...), 0xff, 0x01, 3, 'n', 'e', 'w')
	if got, err := decodeMeta(later); err != nil || !reflect.DeepEqual(got, fullMeta) {
		t.Errorf("with an unknown field: %v, %+v", err, got)
	}
	for n := 1; n < len(data); n++ {
		if got, err := decodeMeta(data[:n]); err == nil && reflect.DeepEqual(got, fullMeta) {
			t.Errorf("the first %d bytes are as good as all %d", n, len(data))
		}
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "another form": {2}, "too long": append([]byte{metaFormat}, make([]byte, memberlist.MetaMaxSize)...),
		"half an address": {metaFormat, tagAddress, 3, 1, 2, 3}, "a prefix too long": {metaFormat, tagPodSubnet, 5, 33, 1, 2, 3, 4},
		"no port": {metaFormat, tagAPI, 1, 1}, "a length beyond the end": {metaFormat, tagVersion, 200, 'v'},
		"a number cut off": {metaFormat, tagProtocol, 1, 0x80}, "two roles": {metaFormat, tagRole, 2, 1, 2},
	} {
		if got, err := decodeMeta(bad); err == nil || !reflect.DeepEqual(got, Meta{}) {
			t.Errorf("%s: %v, %+v", name, err, got)
		}
	}
	if got, _ := decodeMeta([]byte{metaFormat, tagVersion, 4, 'v', 0x1b, '[', '\n'}); got.Version != "v[" {
		t.Errorf("control characters: %q", got.Version)
	}
}

// TestLevelsOfMembers: at the first level the metadata are as before there were levels. A member without one has that.
func TestLevelsOfMembers(t *testing.T) {
	first := Meta{Role: RoleAgent, Version: "v1", Protocol: 2, Level: 1, Running: 1}
	without := []byte{metaFormat, tagRole, 1, 2, tagVersion, 2, 'v', '1', tagProtocol, 1, 2, tagKeyGeneration, 1, 0}
	testenv.EqualSlices(t, first.encode(), without, "the metadata at the first level are")
	got, err := decodeMeta(without)
	testenv.NoError(t, err)
	testenv.True(t, reflect.DeepEqual(got, first), "%+v, want %+v", got, first)
}

// TestHostileLevels: whatever levels a member publishes, they are numbers above zero on a machine of 32 bits, too.
func TestHostileLevels(t *testing.T) {
	for _, n := range []uint64{0, 1, 1 << 31, 1 << 63, 1<<64 - 1} {
		data := []byte{metaFormat}
		for _, tag := range []uint64{tagLevel, tagRunning} {
			data = protowire.AppendBytes(protowire.AppendVarint(data, tag), protowire.AppendVarint(nil, n))
		}
		got, err := decodeMeta(data)
		testenv.NoError(t, err)
		testenv.True(t, int32(got.Level) > 0 && int32(got.Running) > 0, "%d is taken for the levels %d and %d", n, int32(got.Level),
			int32(got.Running))
	}
}

// TestMetaAlwaysFits: whatever a member is given, what it says fits.
func TestMetaAlwaysFits(t *testing.T) {
	m := Meta{Role: 200, Version: strings.Repeat("v", 1000), Protocol: 1<<64 - 1, KeyGeneration: 1<<64 - 1, Level: 1<<64 - 1,
		Running: 1<<64 - 1}
	for range 100 {
		m.API = append(m.API, netip.MustParseAddrPort("[fd00::5]:6443"))
		m.Addresses = append(m.Addresses, netip.MustParseAddr("fd00::5"))
		m.PodSubnets = append(m.PodSubnets, netip.MustParsePrefix("fd00:42::/64"))
	}
	data := m.encode()
	testenv.False(t, len(data) > memberlist.MetaMaxSize, "%d bytes", len(data))
	testenv.Check(t, testenv.Err(decodeMeta(data)))
}

func FuzzMeta(f *testing.F) {
	f.Add(fullMeta.encode())
	f.Add((&Meta{}).encode())
	f.Add([]byte{metaFormat, tagAPI, 200})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeMeta(data)
		if err != nil {
			return
		}
		again, err := decodeMeta(m.encode())
		for i, a := range m.API { // one form for each address
			m.API[i] = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
		for i, a := range m.Addresses {
			m.Addresses[i] = a.Unmap()
		}
		testenv.False(t, err != nil || !reflect.DeepEqual(again, m), "%v\n got %+v\nwant %+v", err, again, m)
	})
}
