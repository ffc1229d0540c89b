// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

const tableName = "nftsend"

var sets = map[string]Set{
	"addrs":     {Key: []Type{IPAddr}},
	"hairpins":  {Key: []Type{IPAddr, IPAddr, InetProto, InetService}},
	"services":  {Key: []Type{IPAddr, InetProto, InetService}, Verdicts: true},
	"nodeports": {Key: []Type{InetProto, InetService}, Verdicts: true},
}

// side is a family's words.
type side struct {
	table  nfttable.Table
	family string
	addr   func(i int) string
	to     func(i, port int) string
}

var sides = []side{
	{nfttable.Table{Family: nfttable.IPv4, Name: tableName}, "ip", func(i int) string { return fmt.Sprint("10.42.0.", i) }, func(i, port int) string { return fmt.Sprintf("10.42.0.%d:%d", i, port) }},
	{nfttable.Table{Family: nfttable.IPv6, Name: tableName}, "ip6", func(i int) string { return fmt.Sprintf("fd42::%x", i) }, func(i, port int) string { return fmt.Sprintf("[fd42::%x]:%d", i, port) }},
}

// write writes commands without their family and table, which stand behind the second word.
func (s side) write(commands ...string) string {
	var out strings.Builder
	for _, c := range commands {
		words := strings.SplitN(c, " ", 3)
		fmt.Fprintln(&out, words[0], words[1], s.family, tableName, words[2])
	}
	return out.String()
}

// base is what a transaction changes.
func (s side) base() string {
	addr := map[string]string{"ip": "ipv4_addr", "ip6": "ipv6_addr"}[s.family]
	return fmt.Sprintf("add table %s %s\ndelete table %s %s\nadd table %s %s\n", s.family, tableName, s.family, tableName, s.family, tableName) + s.write(
		"add set addrs { type "+addr+" ; }", "add set hairpins { type "+addr+" . "+addr+" . inet_proto . inet_service ; }",
		"add map services { type "+addr+" . inet_proto . inet_service : verdict ; }", "add map nodeports { type inet_proto . inet_service : verdict ; }",
		"add chain reject-chain", "add chain service-0/x", "add rule service-0/x "+s.rule(rand.New(rand.NewPCG(0, 0))), "add chain service-1/x",
		"add element addrs { "+s.addr(1)+" }", "add element services { "+s.addr(1)+" . tcp . 80 comment \"ns/svc:http\" : goto reject-chain }",
	)
}

func (s side) rule(r *rand.Rand) string {
	protocol := []string{"tcp", "udp", "sctp"}[r.IntN(3)]
	var out string
	switch r.IntN(5) {
	case 0:
		out = "goto service-1/x"
	case 1:
		out = fmt.Sprintf("mark set mark or %#08x", 1<<r.IntN(32))
	case 2:
		out = "meta l4proto " + protocol + " dnat to " + s.to(1+r.IntN(200), 1+r.IntN(65535))
	default:
		var elements []string
		n := 2 + r.IntN(300)/(1+r.IntN(100))
		for i := range n {
			elements = append(elements, fmt.Sprintf("%d : %s . %d", i, s.addr(1+r.IntN(200)), 1+r.IntN(65535)))
		}
		out = fmt.Sprintf("meta l4proto %s dnat %s addr . port to numgen random mod %d map { %s }", protocol, s.family, n, strings.Join(elements, " , "))
	}
	if r.IntN(3) == 0 {
		out += ` comment "` + strings.Repeat("why not? ", 1+r.IntN(12)) + `"`
	}
	return out
}

// any is a transaction that Send knows. The kernel need not take it.
func (s side) any(r *rand.Rand) string {
	var commands []string
	for range 1 + r.IntN(6) {
		chain, protocol, port := fmt.Sprintf("service-%d/x", r.IntN(4)), []string{"tcp", "udp", "sctp"}[r.IntN(3)], 79+r.IntN(3)
		verdict := []string{"drop", "goto reject-chain", "goto service-0/x", "goto service-3/x"}[r.IntN(4)]
		comment := []string{"", ` comment "ns/svc:http"`}[r.IntN(2)]
		key := fmt.Sprintf("%s . %s . %d", s.addr(1+r.IntN(2)), protocol, port)
		commands = append(commands, [][]string{
			{"add chain " + chain, "flush chain " + chain, "add rule " + chain + " " + s.rule(r)},
			{"add chain " + chain, "flush chain " + chain, "add rule " + chain + " " + s.rule(r), "add rule " + chain + " " + s.rule(r)},
			{"flush chain " + chain},
			{"delete chain " + chain},
			{"add rule " + chain + " " + s.rule(r)},
			{"add element addrs { " + s.addr(1+r.IntN(3)) + comment + " }"},
			{"delete element addrs { " + s.addr(1+r.IntN(2)) + " }"},
			{"add element hairpins { " + s.addr(1) + " . " + s.addr(2) + fmt.Sprintf(" . %s . %d }", protocol, port)},
			{"add element services { " + key + comment + " : " + verdict + " }"},
			{"delete element services { " + s.addr(1) + " . tcp . 80 }", "add element services { " + key + " : " + verdict + " }"},
			{"delete element services { " + key + " }"},
			{fmt.Sprintf("add element nodeports { %s . %d%s : %s }", protocol, port, comment, verdict)},
		}[r.IntN(12)]...)
	}
	return s.write(commands...)
}

func nft(text string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestLikeNFT sends random transactions, and has nft write the same: the kernel takes or refuses both, and has the same chains, rules, sets and elements then, to the last byte.
func TestLikeNFT(t *testing.T) {
	nstest.RequireNFT(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	senders := map[string]*Sender{}
	for _, s := range sides {
		senders[s.family] = New(s.table, sets)
		t.Cleanup(senders[s.family].Close)
	}
	taken := 0
	for range 200 {
		s := sides[r.IntN(2)]
		text := s.any(r)
		var refused [2]error
		var have [2][]string
		for i, write := range []func(string) error{nft, senders[s.family].Send} {
			if err := nft(s.base()); err != nil {
				t.Fatal(err)
			}
			refused[i] = write(text)
			have[i] = kernelHas(t, s.table)
		}
		if errors.Is(refused[1], ErrUnknown) || (refused[0] == nil) != (refused[1] == nil) {
			t.Fatalf("nft says %v, Send says %v to\n%s", refused[0], refused[1], text)
		}
		if refused[0] == nil {
			taken++
		}
		if !slices.Equal(have[0], have[1]) {
			t.Fatalf("after\n%s\nthe kernel has by nft\n%s\nand by Send\n%s", text, strings.Join(have[0], "\n"), strings.Join(have[1], "\n"))
		}
	}
	if taken < 50 {
		t.Errorf("the kernel took %d transactions only", taken)
	}
	for _, s := range sides {
		if err := nfttable.Delete(s.table); err != nil {
			t.Error(err)
		}
	}
}

// kernelHas is all that the kernel says of a table, elements in any order, and none of it interpreted.
func kernelHas(t *testing.T, table nfttable.Table) []string {
	t.Helper()
	ask := func(get, answer int, attrs ...*nl.RtAttr) [][]byte {
		t.Helper()
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|get, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(table.Family), Version: nl.NFNETLINK_V0})
		req.AddData(str(1, table.Name))
		for _, a := range attrs {
			req.AddData(a)
		}
		out, err := req.Execute(unix.NETLINK_NETFILTER, uint16(unix.NFNL_SUBSYS_NFTABLES<<8|answer))
		if err != nil {
			t.Fatal(err)
		}
		for i := range out {
			out[i] = out[i][nl.SizeofNfgenmsg:] // which has the kernel's generation in it
		}
		return out
	}
	var out []string
	for _, q := range []struct{ get, answer int }{
		{unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN}, {unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE}, {unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET},
	} {
		for _, m := range ask(q.get, q.answer) {
			if bytes.Contains(m, []byte(tableName+"\x00")) { // chains are those of all tables
				out = append(out, fmt.Sprintf("%d %q", q.answer, m))
			}
		}
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	named, err := conn.GetSets(&nftables.Table{Family: table.Family, Name: table.Name})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range named {
		var elements []string
		for _, m := range ask(unix.NFT_MSG_GETSETELEM, unix.NFT_MSG_NEWSETELEM, str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)) {
			attrs, err := nl.ParseRouteAttr(m)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range attrs {
				if a.Attr.Type&nl.NLA_TYPE_MASK != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					continue
				}
				list, err := nl.ParseRouteAttr(a.Value)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range list {
					elements = append(elements, fmt.Sprintf("element of %s %q", s.Name, e.Value))
				}
			}
		}
		slices.Sort(elements) // by a hash with a seed of its own
		out = append(out, elements...)
	}
	return out
}

// TestUnknown: what is not surely known is not sent, nor is anything before it.
func TestUnknown(t *testing.T) {
	nstest.RequireNFT(t)
	s := sides[0]
	if err := nft(s.base()); err != nil {
		t.Fatal(err)
	}
	sender := New(s.table, sets)
	t.Cleanup(sender.Close)
	before := kernelHas(t, s.table)
	known := s.write("flush chain service-0/x")
	for _, text := range []string{
		"add table ip nftsend\n", "add chain ip6 nftsend x\n", "add chain ip other x\n", "add chain ip nftsend\n", "# ERROR: no chain\n", "\n",
		s.write("add chain x { comment \"y\" ; }"), s.write("add chain x y"), s.write("create chain x"), s.write("delete chain handle 5"), s.write("flush set addrs"), s.write("delete rule service-0/x handle 5"),
		s.write("add rule service-0/x index 0 goto service-1/x"), s.write("add rule service-0/x drop"), s.write("add rule service-0/x goto service-1/x drop"), s.write("add rule service-0/x goto"),
		s.write("add rule service-0/x meta l4proto icmp dnat to 10.42.0.1:80"), s.write("add rule service-0/x meta l4proto tcp dnat to [fd42::1]:80"),
		s.write("add rule service-0/x meta l4proto tcp dnat to 10.42.0.1:80 random"), s.write("add rule service-0/x meta l4proto tcp dnat to 10.42.0.1"),
		s.write("add rule service-0/x meta l4proto tcp dnat ip addr . port to numgen random mod 2 map @m"), s.write("add rule service-0/x meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.42.0.1 . http }"),
		s.write("add rule service-0/x meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.42.0.1 . 80 , }"), s.write("add rule service-0/x mark set mark or x"),
		s.write(`add rule service-0/x goto service-1/x comment "` + strings.Repeat("x", 128) + `"`), s.write(`add rule service-0/x goto service-1/x comment "x`), s.write(`add rule service-0/x goto service-1/x comment "a\"b"`),
		s.write("add element strangers { 10.42.0.1 }"), s.write("add element addrs { 10.42.0.1, 10.42.0.2 }"), s.write("add element addrs { 10.42.0.1 timeout 5s }"), s.write("add element addrs { fd42::1 }"),
		s.write("add element addrs { 10.42.0.1"), s.write("add element services { 10.42.0.1 . tcp . 65536 : drop }"), s.write("add element services { 10.42.0.1 . tcp . 80 : accept }"), s.write("add element services { 10.42.0.1 . tcp . 80 }"),
		strings.Repeat(known, maxText/len(known)+1),
	} {
		if err := sender.Send(known + text); !errors.Is(err, ErrUnknown) {
			t.Errorf("%v for\n%.200s", err, text)
		}
	}
	if after := kernelHas(t, s.table); !slices.Equal(before, after) {
		t.Errorf("the kernel has\n%s\nand had\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	if err := sender.Send(""); err != nil {
		t.Error("nothing to send:", err)
	}
	if err := nfttable.Delete(s.table); err != nil {
		t.Error(err)
	}
}
