// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { os.Exit(uml.Main(m, netns.Main)) }

const tableName = "nftsend"

var sets = map[string]Set{
	"addrs":               {Key: []Type{IPAddr}},
	"hairpin-connections": {Key: []Type{IPAddr, IPAddr, InetProto, InetService}},
	"services":            {Key: []Type{IPAddr, InetProto, InetService}, Verdicts: true},
	"nodeports":           {Key: []Type{InetProto, InetService}, Verdicts: true},
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
		"add set addrs { type "+addr+" ; }", "add set hairpin-connections { type "+addr+" . "+addr+" . inet_proto . inet_service ; }",
		"add map services { type "+addr+" . inet_proto . inet_service : verdict ; }", "add map nodeports { type inet_proto . inet_service : verdict ; }",
		"add set affinity-0/x "+s.clients(90), "add chain reject-chain", "add chain service-0/x", "add chain service-1/x", "add chain "+longName, "add rule service-0/x "+s.rule(rand.New(rand.NewPCG(0, 0))),
		"add element addrs { "+s.addr(1)+" }", "add element services { "+s.addr(1)+" . tcp . 80 comment \"ns/svc:http\" : goto reject-chain }",
	)
}

// clients is what follows the name of a set of clients.
func (s side) clients(seconds int) string {
	return fmt.Sprintf("{ type %s ; flags dynamic,timeout ; timeout %ds ; }", map[string]string{"ip": "ipv4_addr", "ip6": "ipv6_addr"}[s.family], seconds)
}

// prefix is any network.
func (s side) prefix(r *rand.Rand) string {
	raw := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.Uint64()), r.Uint64())
	a, _ := netip.AddrFromSlice(raw[:map[string]int{"ip": 4, "ip6": 16}[s.family]])
	return netip.PrefixFrom(a, 1+r.IntN(a.BitLen())).Masked().String()
}

// act is what a rule does that may ask first where a packet comes from.
func (s side) act(r *rand.Rand) string {
	from := []string{"", "", "fib saddr type local ", s.family + " saddr " + s.prefix(r) + " "}[r.IntN(4)]
	return from + []string{"goto service-1/x", fmt.Sprintf("mark set mark or %#08x", 1<<r.IntN(32))}[r.IntN(2)]
}

func (s side) rule(r *rand.Rand) string {
	protocol := []string{"tcp", "udp", "sctp"}[r.IntN(3)]
	var out string
	switch r.IntN(7) {
	case 0, 1, 2:
		out = s.act(r)
	case 3:
		out = "meta l4proto " + protocol + " dnat to " + s.to(1+r.IntN(200), 1+r.IntN(65535))
	case 4:
		var elements []string
		n := 1 + r.IntN(200)/(1+r.IntN(50))
		for i := range n {
			elements = append(elements, fmt.Sprintf("%d : goto %s", i, []string{"service-1/x", "reject-chain", longName}[r.IntN(3)]))
		}
		out = fmt.Sprintf("numgen random mod %d vmap { %s }", n, strings.Join(elements, " , "))
	default:
		var elements []string
		n := 2 + r.IntN(maxElements-1)/(1+r.IntN(200))
		for i := range n {
			elements = append(elements, fmt.Sprintf("%d : %s . %d", i, s.addr(1+r.IntN(200)), 1+r.IntN(65535)))
		}
		out = fmt.Sprintf("meta l4proto %s dnat %s addr . port to numgen random mod %d map { %s }", protocol, s.family, n, strings.Join(elements, " , "))
	}
	if r.IntN(3) == 0 {
		out += anyComment(r)
	}
	return out
}

// anyComment is one that nft takes.
func anyComment(r *rand.Rand) string {
	var text strings.Builder
	for n := []int{1 + r.IntN(maxComment), maxComment}[r.IntN(2)]; text.Len() < n; {
		if c := byte(' ' + r.IntN('~'-' '+1)); c != '"' && c != '\\' {
			text.WriteByte(c)
		}
	}
	return ` comment "` + text.String() + `"`
}

// longName is a chain's of the greatest length, which is that of upstream's longest names.
var longName = "endpoint-/" + strings.Repeat("x", maxName-len("endpoint-/"))

// any is a transaction that Send knows. The kernel need not take it.
func (s side) any(r *rand.Rand) string {
	var commands []string
	for range 1 + r.IntN(6) {
		chain, protocol, port := fmt.Sprintf("service-%d/x", r.IntN(4)), []string{"tcp", "udp", "sctp"}[r.IntN(3)], 79+r.IntN(3)
		verdict := []string{"drop", "goto reject-chain", "goto service-0/x", "goto service-3/x", "goto " + longName}[r.IntN(5)]
		comment := []string{"", ` comment "ns/svc:http"`, anyComment(r)}[r.IntN(3)]
		if r.IntN(6) == 0 {
			chain = longName
		}
		key := fmt.Sprintf("%s . %s . %d", s.addr(1+r.IntN(2)), protocol, port)
		clients := fmt.Sprintf("affinity-%d/x", r.IntN(3))
		addClients := "add set " + clients + " " + s.clients([]int{1, 90, 10800, maxAffinity}[r.IntN(4)])
		commands = append(commands, [][]string{
			{"add chain " + chain, "flush chain " + chain, "add rule " + chain + " " + s.rule(r)},
			{"add chain " + chain, "flush chain " + chain, "add rule " + chain + " " + s.rule(r), "add rule " + chain + " " + s.rule(r)},
			{"flush chain " + chain},
			{"delete chain " + chain},
			{"add rule " + chain + " " + s.rule(r)},
			{"add element addrs { " + s.addr(1+r.IntN(3)) + comment + " }"},
			{"delete element addrs { " + s.addr(1+r.IntN(2)) + " }"},
			{"add element hairpin-connections { " + s.addr(1) + " . " + s.addr(2) + fmt.Sprintf(" . %s . %d }", protocol, port)},
			{"add element services { " + key + comment + " : " + verdict + " }"},
			{"delete element services { " + s.addr(1) + " . tcp . 80 }", "add element services { " + key + " : " + verdict + " }"},
			{"delete element services { " + key + " }"},
			{fmt.Sprintf("add element nodeports { %s . %d%s : %s }", protocol, port, comment, verdict)},
			{addClients, "add chain " + chain, "add rule " + chain + " " + s.family + " saddr @" + clients + " " + []string{"goto reject-chain", "mark set mark or 0x4000"}[r.IntN(2)] + comment},
			{"add chain " + chain, "flush chain " + chain, addClients, "add rule " + chain + " update @" + clients + " { " + s.family + " saddr }" + comment},
			{addClients},
			{"delete set " + clients},
			{"flush chain " + chain, "delete set " + clients, addClients},
		}[r.IntN(17)]...)
	}
	return s.write(commands...)
}

func nft(text string) error { return netns.WriteNFT(netns.Own{}, text) }

// rounds is a number of random tries. A guest starts programs so slowly that it has a tenth.
func rounds(n int) int {
	if uml.Inside() {
		return n / 10
	}
	return n
}

// both has nft and Send write the same onto what base makes. It says whether the kernel took it.
func both(t *testing.T, s side, sender *Sender, text string) (taken bool) {
	t.Helper()
	var refused [2]error
	var have [2][]string
	for i, write := range []func(string) error{nft, sender.Send} {
		if err := nft(s.base()); err != nil {
			t.Fatal(err)
		}
		refused[i] = write(text)
		have[i] = kernelHas(t, s.table)
	}
	if errors.Is(refused[1], ErrUnknown) || (refused[0] == nil) != (refused[1] == nil) {
		t.Fatalf("nft says %v, Send says %v to\n%s", refused[0], refused[1], text)
	}
	if !slices.Equal(have[0], have[1]) {
		t.Fatalf("after\n%s\nthe kernel has by nft\n%s\nand by Send\n%s", text, lines(have[0]), lines(have[1]))
	}
	return refused[0] == nil
}

// open has a Sender for each side, and takes the tables away when the test ends.
func open(t *testing.T) map[string]*Sender {
	t.Helper()
	out := map[string]*Sender{}
	for _, s := range sides {
		out[s.family] = New(s.table, sets)
		t.Cleanup(func() {
			out[s.family].Close()
			if err := nfttable.Delete(s.table); err != nil {
				t.Error(err)
			}
		})
	}
	return out
}

// seeded logs what its numbers come from.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := testenv.Seed(t)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestLikeNFT sends random transactions, and has nft write the same: the kernel takes or refuses both, and has the same chains, rules, sets and elements then, to the last byte.
func TestLikeNFT(t *testing.T) {
	netns.RequireNFT(t)
	r, senders, taken := seeded(t), open(t), 0
	tries := rounds(200)
	for range tries {
		if s := sides[r.IntN(2)]; both(t, s, senders[s.family], s.any(r)) {
			taken++
		}
	}
	if !uml.Inside() && taken < tries/4 {
		t.Errorf("the kernel took %d transactions only", taken)
	}
}

// mutant is a text with some words more, less, or others in it.
func mutant(r *rand.Rand, text string) string {
	lines := strings.SplitAfter(text, "\n")
	for range 1 + r.IntN(2) {
		at := r.IntN(len(lines) - 1)
		words := strings.Split(strings.TrimSuffix(lines[at], "\n"), " ")
		i := r.IntN(len(words))
		strange := strangeWords[r.IntN(len(strangeWords))]
		switch r.IntN(7) {
		case 0:
			words = slices.Delete(words, i, i+1)
		case 1:
			words = slices.Insert(words, i, words[i])
		case 2:
			words = slices.Insert(words, i, strange)
		case 3: // a letter more, less, or another one
			w, k := words[i], r.IntN(len(words[i])+1)
			words[i] = w[:k] + string(strangeBytes[r.IntN(len(strangeBytes))]) + w[min(k+r.IntN(2), len(w)):]
		default:
			words[i] = strange
		}
		lines[at] = strings.Join(words, " ") + "\n"
	}
	return strings.Join(lines, "")
}

const strangeBytes = "019afz./-_:,;{}\"'`#$@*\\\t ?!=\x00\xc3"

var strangeWords = []string{
	"0", "1", "00", "007", "080", "65535", "65536", "4294967295", "4294967296", "0x0", "0xffffffff", "0xFF", "0X1", "0x", "0x100000000", "-1", "+1", "1_0", "1e3", "80-90", "!=", "*", "#", ";", "",
	"tcp", "udp", "sctp", "icmp", "6", "http", "drop", "accept", "goto", "jump", "reject", "counter", "comment", "random", "map", "add", "flush", "delete", "handle", "index", "{", "}", ":", ".", ",", "@addrs", "$x",
	"::", "::1", "::ffff:10.42.0.1", "64:ff9b::10.42.0.1", "fd42:0:0::1", "FD42::1", "fd42::1%lo", "[fd42::1]:080", "10.42.0.1:080", "10.42.0.1:0", "010.42.0.1", "10.42.1", "10.42.0.0/24", "0.0.0.0", "255.255.255.255",
	"9chain", "-chain", "a,b", "a-b", "a/b", "a#b/c", "a*", "caf\u00e9/x", "service-0/x", "reject-chain", "Service-0/X", "_/x", ".", `"a"`, `"a`, `""`, `"service-0/x"`, `"a/b"`, "icmpv6-type/x", "never-there/x",
	"0.0.0.0/0", "::/0", "10.42.0.0/33", "10.42.0.0/016", "10.42.0.1/16", "10.42.0.0/1", "10.42/16", "fd42::/56", "fd42:0::/56", "fd42::1/56", "10.42.0.0/16", "@affinity-0/x", "@affinity-1/x", "@services", "@", "affinity-0/x", "addrs", "update", "saddr", "daddr", "fib",
	"local", "unicast", "type", "flags", "dynamic", "dynamic,timeout", "timeout,dynamic", "timeout", "0s", "1s", "01s", "90", "86400s", "86401s", "4294967296s", "1m", "1d", "90ms", "vmap", "ipv4_addr", "ipv6_addr", "typeof", "set", "counter", "limit", "size", "jump",
}

// TestStrange: what is not quite of Send's forms, by a word or a letter, is nft's, or nft takes it for the same.
func TestStrange(t *testing.T) {
	netns.RequireNFT(t)
	r, senders, known := seeded(t), open(t), 0
	for range 10000 {
		s := sides[r.IntN(2)]
		text := mutant(r, s.any(r))
		if b := newBatch(s.table, sets); b.read(text) == nil && b.last > 0 {
			known++
			both(t, s, senders[s.family], text)
		}
		if known == rounds(60) {
			return
		}
	}
	t.Errorf("Send knows %d transactions only", known)
}

// kernelHas is all that the kernel says of a table.
func kernelHas(t *testing.T, table nfttable.Table) []string {
	t.Helper()
	return netns.NFTTable(t, netns.Own{}, uint8(table.Family), table.Name, true)
}

// lines shows what kernelHas says.
func lines(of []string) string {
	var out strings.Builder
	for _, line := range of {
		fmt.Fprintf(&out, "%q\n", line)
	}
	return out.String()
}

// TestUnknown: what is not surely known is not sent, nor is anything before it.
func TestUnknown(t *testing.T) {
	netns.RequireNFT(t)
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
		s.write("add chain x/y { comment \"y\" ; }"), s.write("add chain x/y y"), s.write("create chain x/y"), s.write("delete chain handle 5"), s.write("add chain drop"), s.write("add chain 9/x"), s.write("add chain " + longName + "x"), s.write("flush set addrs"), s.write("delete rule service-0/x handle 5"),
		s.write("add rule service-0/x index 0 goto service-1/x"), s.write("add rule service-0/x drop"), s.write("add rule service-0/x goto service-1/x drop"), s.write("add rule service-0/x goto"),
		s.write("add rule service-0/x meta l4proto icmp dnat to 10.42.0.1:80"), s.write("add rule service-0/x meta l4proto tcp dnat to [fd42::1]:80"),
		s.write("add rule service-0/x meta l4proto tcp dnat to 10.42.0.1:80 random"), s.write("add rule service-0/x meta l4proto tcp dnat to 10.42.0.1"),
		s.write("add rule service-0/x meta l4proto tcp dnat ip addr . port to numgen random mod 2 map @m"), s.write("add rule service-0/x meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.42.0.1 . http }"),
		s.write("add rule service-0/x meta l4proto tcp dnat ip addr . port to numgen random mod 1 map { 0 : 10.42.0.1 . 80 , }"), s.write("add rule service-0/x mark set mark or x"),
		s.write(`add rule service-0/x goto service-1/x comment "` + strings.Repeat("x", 129) + `"`), s.write(`add rule service-0/x goto service-1/x comment "x`), s.write(`add rule service-0/x goto service-1/x comment "a\"b"`), s.write("add rule service-0/x goto service-1/x comment \"a\x00b\""),
		s.write("add rule service-0/x ip saddr 0.0.0.0/0 goto service-1/x"), s.write("add rule service-0/x ip saddr 10.42.0.1/16 goto service-1/x"), s.write("add rule service-0/x ip saddr 10.42.0.1 goto service-1/x"), s.write("add rule service-0/x ip6 saddr fd42::/56 goto service-1/x"),
		s.write("add rule service-0/x ip saddr fd42::/56 goto service-1/x"), s.write("add rule service-0/x ip daddr 10.42.0.0/16 goto service-1/x"), s.write("add rule service-0/x ip saddr != 10.42.0.0/16 goto service-1/x"), s.write("add rule service-0/x ip saddr 10.42.0.0/16"),
		s.write("add rule service-0/x ip saddr 10.42.0.0/16 drop"), s.write("add rule service-0/x ip saddr != { 10.42.0.0/16 } drop"), s.write("add rule service-0/x fib daddr type local goto service-1/x"), s.write("add rule service-0/x fib saddr type unicast goto service-1/x"),
		s.write("add rule service-0/x ip saddr @affinity-0/x goto service-1/x"), s.write("add rule service-0/x update @affinity-0/x { ip saddr }"), // nobody says what sets they are
		s.write("add set affinity-0/x "+s.clients(90), "delete set affinity-0/x", "add rule service-0/x update @affinity-0/x { ip saddr }"), s.write("add set affinity-0/x "+s.clients(90), "add rule service-0/x update @affinity-0/x { ip daddr }"),
		s.write("add set affinity-0/x "+s.clients(90), "add rule service-0/x update @affinity-0/x { ip saddr timeout 5s }"), s.write("add set affinity-0/x "+s.clients(90), "add rule service-0/x add @affinity-0/x { ip saddr }"),
		s.write("add set affinity-0/x " + s.clients(0)), s.write("add set affinity-0/x " + s.clients(maxAffinity+1)), s.write("add set affinity-0/x " + sides[1].clients(90)), s.write("add set affinity-0/x"), s.write("add set affinity-0/x { type ipv4_addr ; }"),
		s.write("add set affinity-0/x { type ipv4_addr ; flags dynamic,timeout ; timeout 90s ; size 5 ; }"), s.write("add set addrs " + s.clients(90)), s.write("delete set addrs"), s.write("delete set nodeports"), s.write("delete set hairpin-connections"),
		s.write("add rule service-0/x numgen random mod 2 vmap { 0 : goto service-1/x , }"), s.write("add rule service-0/x numgen random mod 2 vmap { 0 : jump service-1/x }"), s.write("add rule service-0/x numgen inc mod 2 vmap { 0 : goto service-1/x }"), s.write("add rule service-0/x numgen random mod 2 vmap @nodeports"),
		s.write("add rule service-0/x numgen random mod 2 vmap { " + strings.TrimSuffix(strings.Repeat("0 : goto "+longName+" , ", 230), " , ") + " }"), // more than an attribute holds
		s.write("add element strangers { 10.42.0.1 }"), s.write("add element addrs { 10.42.0.1, 10.42.0.2 }"), s.write("add element addrs { 10.42.0.1 timeout 5s }"), s.write("add element addrs { fd42::1 }"),
		s.write("add element addrs { 10.42.0.1"), s.write("add element services { 10.42.0.1 . tcp . 65536 : drop }"), s.write("add element services { 10.42.0.1 . tcp . 80 : accept }"), s.write("add element services { 10.42.0.1 . tcp . 80 }"),
		strings.Repeat(known, maxText/len(known)+1),
	} {
		if err := sender.Send(known + text); !errors.Is(err, ErrUnknown) {
			t.Errorf("%v for\n%.200s", err, text)
		}
	}
	if after := kernelHas(t, s.table); !slices.Equal(before, after) {
		t.Errorf("the kernel has\n%s\nand had\n%s", lines(after), lines(before))
	}
	if err := sender.Send(""); err != nil {
		t.Error("nothing to send:", err)
	}
	if err := nfttable.Delete(s.table); err != nil {
		t.Error(err)
	}
}
