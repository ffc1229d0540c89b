// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestScenarioScripts plays the scenarios that are text files: testdata/scenarios/NAME.txt is the subtest NAME. A
// script has one statement a line, whose forms are below; # begins a comment. The lines at its top say how it is
// played:
//
//	servers 3 5     with three servers and with five
//	cases deaf mute once for each word; $case in the script is that word, and of a word 30ms,1s $1 is 30ms and $2 is 1s;
//	                with several such lines once for each choice of a word of each, which is deaf,1s; a,5 is for five servers
//	seeds 3         with three seeds, or as many as the environment says (see seeds)
//	max-voters 1    with at most one voter; "max-members 2": with at most two members
//	request-timeout 4m  with requests that may take so long
//	unsettled       without what every scenario checks at its end
//
// A statement that begins with [deaf] is for that case, or those with that part; one that begins with [5] is for five
// servers. "repeat 3", "for 2m" and "each X of SET" repeat what follows until "end", the last with the name X for each
// server; "one time in 4" plays it or not, and "one of these" one of the parts between which there is "or".
// Names of servers in a script are those that "let" gives, or a, b, c and so on. SET is one or several of these, or
// "all"; -X leaves X out.
func TestScenarioScripts(t *testing.T) {
	files := testenv.Must(filepath.Glob("testdata/scenarios/*.txt"))(t)
	testenv.True(t, len(files) > 30, "%d scripts", len(files))
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text := string(testenv.Must(os.ReadFile(file))(t))
			head := readHead(t, text)
			for _, n := range head.servers {
				for _, word := range head.cases {
					isForOthers := func(m int) bool { return m != n && slices.Contains(strings.Split(word, ","), strconv.Itoa(m)) }
					if slices.ContainsFunc(head.servers, isForOthers) {
						continue
					}
					t.Run(strings.TrimSuffix(fmt.Sprintf("%d %s", n, word), " "), func(t *testing.T) {
						tune := func(o *Options) {
							o.MaxVoters, o.MaxMembers, o.RequestTimeout = head.voters, head.members, head.timeout
						}
						play := func(c *cluster) {
							s := &script{
								cluster: c, file: file, word: word,
								sets: map[string][]*node{}, numbers: map[string]uint64{}, times: map[string]time.Time{},
							}
							s.play(s.read(text))
						}
						if head.unsettled {
							stages(t, head.seeds, n, tune, play)
						} else {
							scenariosOf(t, head.seeds, n, tune, play)
						}
					})
				}
			}
		})
	}
}

// scriptHead is what the top of a script says.
type scriptHead struct {
	servers                []int
	cases                  []string
	seeds, voters, members int
	timeout                time.Duration
	unsettled              bool
}

// headLine is a line of a script's top.
var headLine = regexp.MustCompile(`(?m)^(servers|cases|seeds|max-voters|max-members|request-timeout|unsettled)\b(.*)\n`)

func readHead(t *testing.T, text string) scriptHead {
	h := scriptHead{cases: []string{""}, seeds: 1}
	for _, line := range headLine.FindAllStringSubmatch(text, -1) {
		words := strings.Fields(line[2])
		number := func(i int) int { return testenv.Must(strconv.Atoi(words[i]))(t) }
		switch line[1] {
		case "servers":
			for i := range words {
				h.servers = append(h.servers, number(i))
			}
		case "cases":
			var all []string
			for _, c := range h.cases {
				for _, w := range words {
					all = append(all, strings.TrimPrefix(c+","+w, ","))
				}
			}
			h.cases = all
		case "seeds":
			h.seeds = number(0)
		case "max-voters":
			h.voters = number(0)
		case "max-members":
			h.members = number(0)
		case "request-timeout":
			h.timeout = testenv.Must(time.ParseDuration(words[0]))(t)
		case "unsettled":
			h.unsettled = true
		}
	}
	testenv.True(t, len(h.servers) > 0, "the script does not say how many servers there are")
	return h
}

// script is a script that is played.
type script struct {
	*cluster
	file, word string
	sets       map[string][]*node
	numbers    map[string]uint64 // terms and indices
	times      map[string]time.Time
	working    []*clients
}

// line is a statement of a script: its place, and what it does.
type line struct {
	at, text string
	run      func(block []line)
	block    []line // of a loop
}

// form is a form of statements. N is a number, D a duration, X one server, SET servers, NAMES new names, CODE a gRPC
// code, STATE one of states.
type form struct {
	words string
	run   func(s *script, a []string)
}

// loops are the statements that repeat a block.
var loops = []struct {
	words string
	run   func(s *script, a []string, block []line)
}{
	{"repeat N", func(s *script, a []string, block []line) {
		for range s.number(a[0]) {
			s.play(block)
		}
	}},
	{"for D", func(s *script, a []string, block []line) {
		for end := time.Now().Add(s.duration(a[0])); time.Now().Before(end); {
			s.play(block)
		}
	}},
	{"each X of SET", func(s *script, a []string, block []line) {
		for _, n := range s.set(a[1]) {
			s.sets[a[0]] = []*node{n}
			s.play(block)
		}
	}},
	{"one time in N", func(s *script, a []string, block []line) {
		if s.rand.IntN(s.number(a[0])) == 0 {
			s.play(block)
		}
	}},
	{"one of these", func(s *script, _ []string, block []line) {
		parts := [][]line{nil}
		for _, l := range block {
			if l.text == "or" {
				parts = append(parts, nil)
			}
			parts[len(parts)-1] = append(parts[len(parts)-1], l)
		}
		s.play(parts[s.rand.IntN(len(parts))])
	}},
}

var placeholder = map[string]string{
	"N": `(\d+)`, "D": `(\d[\dhms.]*)`, "X": `(\w+)`, "SET": `([\w -]+?)`, "NAMES": `([\w ]+?)`, "CODE": `([A-Z_]+)`, "STATE": `(.+)`,
}

// pattern makes a regular expression of a form.
func pattern(words string) *regexp.Regexp {
	fields := strings.Fields(words)
	for i, f := range fields {
		if p, ok := placeholder[f]; ok {
			fields[i] = p
		} else {
			fields[i] = regexp.QuoteMeta(f)
		}
	}
	return regexp.MustCompile("^" + strings.Join(fields, " ") + "$")
}

// forms are the statements. Where two match a line, the one of more words counts.
var forms = []form{
	// Names, terms, indices and times to come back to.
	{"let X = leader", func(s *script, a []string) { s.sets[a[0]] = []*node{s.leader()} }},
	{"let X = leader of SET", func(s *script, a []string) { s.sets[a[0]] = []*node{s.leader(s.set(a[1])...)} }},
	{"let X = voter", func(s *script, a []string) {
		s.sets[a[0]] = []*node{s.member(func(m Member) bool { return m.Voter && !m.Leader })}
	}},
	{"let X = standby", func(s *script, a []string) { s.sets[a[0]] = []*node{s.member(func(m Member) bool { return !m.Voter })} }},
	{"let NAMES = first of SET", func(s *script, a []string) { s.name(a[0], s.set(a[1])) }},
	{"let NAMES = any of SET", func(s *script, a []string) {
		from := slices.Clone(s.set(a[1]))
		s.rand.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		s.name(a[0], from)
	}},
	{"let NAMES = by id of SET", func(s *script, a []string) {
		s.name(a[0], slices.SortedFunc(slices.Values(s.set(a[1])), func(x, y *node) int {
			return strings.Compare(string(x.running().replica.id), string(y.running().replica.id))
		}))
	}},
	{"let X = SET", func(s *script, a []string) { s.sets[a[0]] = s.set(a[1]) }},
	{"term X", func(s *script, a []string) { s.numbers[a[0]] = s.leader().term() }},
	{"newest term X", func(s *script, a []string) { s.numbers[a[0]] = s.newest() }},
	{"index X", func(s *script, a []string) { s.numbers[a[0]] = s.leader().running().replica.raft.LastIndex() }},
	{"clock X", func(s *script, a []string) { s.times[a[0]] = time.Now() }},
	{"revision X at X", func(s *script, a []string) { s.numbers[a[0]] = uint64(s.one(a[1]).running().Status().Revision) }},
	{"or", func(*script, []string) {}},

	// Time and clients.
	{"pass D", func(s *script, a []string) { s.pass(s.duration(a[0])) }},
	{"pass D to D", func(s *script, a []string) { s.pass(s.between(a[0], a[1])) }},
	{"clients N", func(s *script, a []string) { s.working = append(s.working, s.work(s.number(a[0]))) }},
	{"clients N at SET", func(s *script, a []string) { s.working = append(s.working, s.work(s.number(a[0]), s.set(a[1])...)) }},
	{"no clients", func(s *script, _ []string) {
		for _, w := range s.working {
			w.stop()
		}
		s.working = nil
	}},
	{"fill N at X", func(s *script, a []string) { s.fill(s.one(a[1]), s.number(a[0])) }},
	{"X writes N values of N bytes, each within D", func(s *script, a []string) {
		value := noise(s.number(a[2]))
		for i := range s.number(a[1]) {
			_, err := s.one(a[0]).running().Client().KV.Put(s.within(s.duration(a[3])), fmt.Sprintf("k%d", i%100), value)
			s.endIf(err != nil, "value %d: %v", i, err)
		}
	}},

	// Servers and members.
	{"crash SET", func(s *script, a []string) { s.each(a[0], (*node).crash) }},
	{"begin to crash SET", func(s *script, a []string) { s.each(a[0], func(n *node) { s.tasks.Go(n.crash) }) }},
	{"begin to stop SET", func(s *script, a []string) { s.each(a[0], func(n *node) { s.tasks.Go(n.stop) }) }},
	{"add NAMES", func(s *script, a []string) {
		for _, name := range strings.Fields(a[0]) {
			s.add(name)
		}
	}},
	{"stop SET", func(s *script, a []string) { s.each(a[0], (*node).stop) }},
	{"start SET", func(s *script, a []string) { s.each(a[0], func(n *node) { n.start() }) }},
	{"start SET through SET", func(s *script, a []string) { s.each(a[0], func(n *node) { n.start(hosts(s.set(a[1]))...) }) }},
	{"start X finds damage", func(s *script, a []string) {
		err, damage := s.one(a[0]).tryStart(), (*DamageError)(nil)
		s.failIf(!errors.As(err, &damage), "it ended with %v", err)
	}},
	{"wipe SET", func(s *script, a []string) { s.each(a[0], (*node).wipe) }},
	{"damage SET", func(s *script, a []string) { s.each(a[0], (*node).spoil) }},
	{"recover X", func(s *script, a []string) { s.recover(s.one(a[0])) }},
	{"move SET", func(s *script, a []string) { s.move(s.set(a[0]), func(n *node) string { return "new " + n.name }) }},
	{"swap addresses of SET", func(s *script, a []string) {
		of, places := s.set(a[0]), hosts(s.set(a[0]))
		s.move(of, func(n *node) string { return places[(slices.Index(of, n)+1)%len(of)] })
	}},
	{"report addresses of SET", func(s *script, a []string) { s.reported.Store(new(hosts(s.set(a[0])))) }},
	{"clock of X is D ahead", func(s *script, a []string) { s.one(a[0]).off.Store(int64(s.duration(a[1]))) }},
	{"clock of X is D behind", func(s *script, a []string) { s.one(a[0]).off.Store(-int64(s.duration(a[1]))) }},
	{"clock of X is right", func(s *script, a []string) { s.one(a[0]).off.Store(0) }},
	{"lost for good SET", func(s *script, a []string) { s.each(a[0], func(n *node) { n.gone = true }) }},
	{"join X through X", func(s *script, a []string) { s.join(a[0], s.one(a[1]).name) }},
	{"transfer leadership", func(s *script, _ []string) { s.transferAny("") }},
	{"transfer leadership is CODE", func(s *script, a []string) { s.transferAny(a[0]) }},
	{"transfer leadership to X", func(s *script, a []string) { s.transfer(a[0], "") }},
	{"transfer leadership to X is CODE", func(s *script, a []string) { s.transfer(a[0], a[1]) }},
	{"X tries to transfer leadership within D", func(s *script, a []string) {
		_ = s.one(a[0]).running().cluster.TransferLeadership(s.within(s.duration(a[1])))
	}},
	{"remove X through X", func(s *script, a []string) { s.takeOut(a[0], a[1], "") }},
	{"remove X through X is CODE", func(s *script, a []string) { s.takeOut(a[0], a[1], a[2]) }},
	{"promote X through X", func(s *script, a []string) { s.promote(a[0], a[1], "") }},
	{"promote X through X is CODE", func(s *script, a []string) { s.promote(a[0], a[1], a[2]) }},
	{"snapshot SET", func(s *script, a []string) { s.compactLog(s.set(a[0])...) }},

	// Links.
	{"cut SET > SET", func(s *script, a []string) { s.pairs(a[0], a[1], func(x, y *node) { s.net.Cut(x.host, y.host) }) }},
	{"cut SET - SET", func(s *script, a []string) { s.pairs(a[0], a[1], s.cutLink) }},
	{"isolate SET", func(s *script, a []string) { s.isolate(s.set(a[0])...) }},
	{"partition SET | SET", func(s *script, a []string) { s.partition(s.set(a[0]), s.set(a[1])) }},
	{"heal", func(s *script, _ []string) { s.net.HealAll() }},
	{"delay SET > SET D", func(s *script, a []string) {
		s.pairs(a[0], a[1], func(x, y *node) { s.net.Delay(x.host, y.host, s.duration(a[2]), 0) })
	}},
	{"delay all D jitter D", func(s *script, a []string) { s.jitter(s.duration(a[0]), s.duration(a[1])) }},
	{"lose large packets SET > SET", func(s *script, a []string) {
		s.pairs(a[0], a[1], func(x, y *node) { s.net.Largest(x.host, y.host, 1200) })
	}},
	{"links of SET carry N bytes a second", func(s *script, a []string) {
		s.pairs(a[0], "all", func(x, y *node) {
			s.net.Rate(x.host, y.host, s.number(a[1]))
			s.net.Rate(y.host, x.host, s.number(a[1]))
		})
	}},
	{"no new connections SET > SET", func(s *script, a []string) {
		from, to := hosts(s.set(a[0])), hosts(s.set(a[1]))
		s.block.add(func(x, y string) bool { return slices.Contains(from, x) && slices.Contains(to, y) })
	}},
	{"attempts to connect get no answer", func(s *script, _ []string) { s.block.silent.Store(true) }},
	{"new connections", func(s *script, _ []string) { s.block.shut.Store(nil) }},
	{"calls of X fail", func(s *script, a []string) { s.failCalls(s.one(a[0])) }},
	{"calls to SET are held up", func(s *script, a []string) { s.held.begin(hosts(s.set(a[0]))) }},
	{"calls go on", func(s *script, _ []string) { s.held.end() }},
	{"pass large packets", func(s *script, _ []string) { s.loseLarge(0) }},

	// Disks.
	{"stall SET", func(s *script, a []string) { s.each(a[0], (*node).stalls) }},
	{"flushes of SET take D", func(s *script, a []string) { s.each(a[0], func(n *node) { n.faults.DelayFlushes(s.duration(a[1])) }) }},
	{"flushes of SET take D to D", func(s *script, a []string) {
		s.each(a[0], func(n *node) { n.faults.DelayFlushes(s.between(a[1], a[2])) })
	}},
	{"all disks stall for D", func(s *script, a []string) { s.allStalled(s.duration(a[0])) }},
	{"full SET", func(s *script, a []string) { s.each(a[0], func(n *node) { n.faults.SeemFull(true) }) }},
	{"writes fail on SET", func(s *script, a []string) { s.each(a[0], func(n *node) { n.faults.FailWrites(unix.ENOSPC) }) }},
	{"mend SET", func(s *script, a []string) { s.each(a[0], (*node).mendDisk) }},
	{"mend X in D", func(s *script, a []string) { time.AfterFunc(s.duration(a[1]), s.one(a[0]).mendDisk) }},

	// What is expected.
	{"ready SET", func(s *script, a []string) { s.each(a[0], s.ready) }},
	{"serves SET", func(s *script, a []string) { s.serves(s.set(a[0])...) }},
	{"refuses SET", func(s *script, a []string) { s.each(a[0], s.refuses) }},
	{"live SET", func(s *script, a []string) { s.live(s.set(a[0])) }},
	{"SET writes within D", func(s *script, a []string) {
		s.each(a[0], func(n *node) {
			err := s.writes(n, s.duration(a[1]))
			s.failIf(err != nil, "no write at %s within %s: %v", n.name, a[1], err)
		})
	}},
	{"X tries to write within D", func(s *script, a []string) { _ = s.writes(s.one(a[0]), s.duration(a[1])) }},
	{"X tries to write a large value within D", func(s *script, a []string) {
		_, _ = s.one(a[0]).running().Client().KV.Put(s.within(s.duration(a[1])), "large", s.large())
	}},
	{"X writes a large value within D", func(s *script, a []string) {
		err := testenv.Err(s.one(a[0]).running().Client().KV.Put(s.within(s.duration(a[1])), "large", s.large()))
		s.failIf(err != nil, "no large write at %s within %s: %v", a[0], a[1], err)
	}},
	{"SET reads", func(s *script, a []string) {
		s.each(a[0], func(n *node) {
			testenv.Check(s, testenv.Err(n.running().Client().KV.Get(s.within(5*time.Second), "k")), "a read")
		})
	}},
	{"SET deletes", func(s *script, a []string) {
		s.each(a[0], func(n *node) {
			testenv.Check(s, testenv.Err(n.running().Client().KV.Delete(s.within(5*time.Second), "k")), "a deletion")
		})
	}},
	{"compact through X", func(s *script, a []string) {
		store := s.one(a[0]).running()
		testenv.Check(s, testenv.Err(store.Client().KV.Compact(s.within(5*time.Second), store.Status().Revision)), "a compaction")
	}},
	{"begin a fenced write at X in term X", func(s *script, a []string) { s.tasks.Go(func() { _ = s.fencedWrite(a, 20*time.Second) }) }},
	{"fenced write at X in term X", func(s *script, a []string) {
		err := s.fencedWrite(a, time.Second)
		s.failIf(err != nil, "%v", err)
	}},
	{"fenced write at X in term X fails", func(s *script, a []string) { s.failIf(s.fencedWrite(a, 3*time.Second) == nil, "it was done") }},
	{"fenced write at X in term X is fenced", func(s *script, a []string) {
		err := s.fencedWrite(a, 3*time.Second)
		s.failIf(!errors.Is(err, mvcc.ErrFenced), "it was not fenced: %v", err)
	}},
	{"gap of SET at most D", func(s *script, a []string) {
		gap := s.gap(s.set(a[0]))
		s.failIf(gap > s.duration(a[1]), "the store did not serve for %v", gap)
	}},
	{"members SET with N voters within D", func(s *script, a []string) {
		s.rest(s.duration(a[2]), s.number(a[1]), names(s.set(a[0]))...)
	}},
	{"at most D since X", func(s *script, a []string) {
		took := time.Since(s.times[a[1]])
		s.failIf(took > s.duration(a[0]), "it took %v", took)
	}},
	{"at most N elections since X", func(s *script, a []string) { s.atMost(a, s.leader().term()) }},
	{"at most N terms since X", func(s *script, a []string) { s.atMost(a, s.newest()) }},
	{"at most N entries since X", func(s *script, a []string) { s.atMost(a, s.leader().running().replica.raft.LastIndex()) }},
	{"at least N entries since X", func(s *script, a []string) {
		grown := s.leader().running().replica.raft.LastIndex() - s.numbers[a[1]]
		s.failIf(grown < uint64(s.number(a[0])), "%d since %s", grown, a[1])
	}},
	{"at least N acknowledged writes", func(s *script, a []string) {
		s.failIf(s.acked() < s.number(a[0]), "only %d writes were acknowledged", s.acked())
	}},
	{"within D STATE", func(s *script, a []string) {
		ok := s.holds(a[1])
		s.eventually(a[1], s.duration(a[0]), ok)
	}},
	{"for D STATE", func(s *script, a []string) {
		ok := s.holds(a[1])
		for end := time.Now().Add(s.duration(a[0])); time.Now().Before(end); s.pass(time.Second) {
			s.endIf(!ok(), "not so: %s", a[1])
		}
	}},
	{"now STATE", func(s *script, a []string) { s.failIf(!s.holds(a[0])(), "not so: %s", a[0]) }},
}

// states are what a server may be. Each may have "not" before it.
var states = []struct {
	words string
	holds func(s *script, a []string) bool
}{
	{"X leads", func(s *script, a []string) bool { return s.one(a[0]).leads() }},
	{"one of SET leads", func(s *script, a []string) bool { return slices.ContainsFunc(s.set(a[0]), (*node).leads) }},
	{"X is the same member", func(s *script, a []string) bool { return s.one(a[0]).running().replica.id == s.one(a[0]).was }},
	{"X is the only member", func(s *script, a []string) bool {
		m := s.one(a[0]).running().cluster.Members()
		return len(m) == 1 && m[0].Address == s.one(a[0]).host
	}},
	{"X knows members", func(s *script, a []string) bool { return len(s.one(a[0]).running().cluster.Members()) > 0 }},
	{"all addresses are known", func(s *script, _ []string) bool {
		return !slices.ContainsFunc(s.nodes, func(n *node) bool {
			return slices.ContainsFunc(n.running().cluster.Members(), func(m Member) bool { return m.Address != s.one(m.Name).host })
		})
	}},
	{"X has moved its damaged files away", func(s *script, a []string) bool {
		return len(testenv.Must(filepath.Glob(s.one(a[0]).dir+".damaged-*"))(s)) == 1
	}},
	{"X lags by N entries", func(s *script, a []string) bool {
		has, newest := s.one(a[0]).running().replica.raft.LastIndex(), s.leader().running().replica.raft.LastIndex()
		return newest >= has+uint64(s.number(a[1]))
	}},
	{"SET refuses additions", func(s *script, a []string) bool {
		return !slices.ContainsFunc(s.set(a[0]), func(n *node) bool {
			_, err := n.running().Client().KV.Put(s.within(5*time.Second), "k", fmt.Sprintf("v%d", s.clock.Add(1)))
			s.endIf(err != nil && !errors.Is(err, rpctypes.ErrNoSpace), "%s: %v", n.name, err)
			return err == nil
		})
	}},
	{"no clock is off", func(s *script, _ []string) bool { return s.clocksOff() }},
	{"only the clock of X is off", func(s *script, a []string) bool { return s.clocksOff(s.one(a[0])) }},
	{"survey of X misses only X", func(s *script, a []string) bool {
		return s.survey(a, func(m MemberState) bool { return !m.Answers || m.Version != "scenario" || m.Lag > maxMissingEntries })
	}},
	{"survey of X finds only the disk of X stalled", func(s *script, a []string) bool {
		return s.survey(a, func(m MemberState) bool { return m.Stalled && m.Answers })
	}},
	{"X can write within D", func(s *script, a []string) bool { return s.writes(s.one(a[0]), s.duration(a[1])) == nil }},
	{"X can write within D or is without a leader", func(s *script, a []string) bool {
		return s.writes(s.one(a[0]), s.duration(a[1])) == nil || !s.withoutLeader(a[0]).IsZero()
	}},
	{"X is without a leader", func(s *script, a []string) bool { return !s.withoutLeader(a[0]).IsZero() }},
	{"X has been without a leader for D", func(s *script, a []string) bool {
		since := s.withoutLeader(a[0])
		return !since.IsZero() && time.Since(since) >= s.duration(a[1])
	}},
	{"X reads at revision X", func(s *script, a []string) bool {
		at := clientv3.WithRev(int64(s.numbers[a[1]]))
		return testenv.Err(s.one(a[0]).running().Client().KV.Get(s.within(5*time.Second), "fill0", at)) == nil
	}},
	{"revision of X is newer than X", func(s *script, a []string) bool {
		return uint64(s.one(a[0]).running().Status().Revision) > s.numbers[a[1]]
	}},
	{"X is removed", func(s *script, a []string) bool { return s.one(a[0]).running().Health().Removed() }},
	{"X is cut off", func(s *script, a []string) bool { return s.one(a[0]).running().Health().CutOff() }},
	{"X is confirmed", func(s *script, a []string) bool { return s.one(a[0]).running().Health().MembershipConfirmed() }},
	{"X knows a leader", func(s *script, a []string) bool { return s.one(a[0]).running().leader.hasLeader() }},
	{"X sends clients to SET", func(s *script, a []string) bool {
		return slices.Contains(names(s.set(a[1])), s.one(a[0]).running().Health().OtherLeader())
	}},
	{"X waits for its disk", func(s *script, a []string) bool { return s.one(a[0]).running().replica.dir.Stalled() > 0 }},
	{"X votes", func(s *script, a []string) bool { return s.votes(s.leader(), s.one(a[0])) }},
	{"N vote", func(s *script, a []string) bool { return s.voters(s.leader()) == s.number(a[0]) }},
	{"X got a snapshot", func(s *script, a []string) bool {
		return s.one(a[0]).running().replica.raft.Stats()["last_snapshot_index"] != "0"
	}},
}

// holds finds the state that words name.
func (s *script) holds(words string) func() bool {
	words, negated := strings.CutPrefix(words, "not ")
	for _, state := range states {
		if m := pattern(state.words).FindStringSubmatch(words); m != nil {
			return func() bool { return state.holds(s, m[1:]) != negated }
		}
	}
	s.Fatalf("no state of a server: %q", words)
	return nil
}

// read makes statements of a script's text, those of its case and number of servers.
func (s *script) read(text string) []line {
	parts, pairs := strings.Split(s.word, ","), []string{"$case", s.word}
	for i, p := range parts {
		pairs = append(pairs, fmt.Sprint("$", i+1), p)
	}
	values := strings.NewReplacer(pairs...)
	blocks := [][]line{nil} // the innermost is the last
	for i, l := range strings.Split(headLine.ReplaceAllString(text, "\n"), "\n") {
		l, _, _ = strings.Cut(l, "#")
		l = strings.TrimSpace(values.Replace(l))
		for strings.HasPrefix(l, "[") {
			only, rest, _ := strings.Cut(l[1:], "]")
			if l = strings.TrimSpace(rest); only != s.word && only != strconv.Itoa(len(s.nodes)) && !slices.Contains(parts, only) {
				l = ""
			}
		}
		at, inner := fmt.Sprintf("%s:%d", s.file, i+1), len(blocks)-1
		switch next := (line{at: at, text: l}); l {
		case "":
		case "end":
			s.endIf(inner == 0, "%s: an end without a loop", at)
			outer := blocks[inner-1]
			outer[len(outer)-1].block = blocks[inner]
			blocks = blocks[:inner]
		default:
			if next.run = s.loop(l); next.run != nil {
				blocks = append(blocks, nil)
			} else {
				next.run = s.statement(at, l)
			}
			blocks[inner] = append(blocks[inner], next)
		}
	}
	s.endIf(len(blocks) > 1, "%s: a loop without an end", s.file)
	return blocks[0]
}

// loop returns nil if a line begins none.
func (s *script) loop(text string) func(block []line) {
	for _, l := range loops {
		if m := pattern(l.words).FindStringSubmatch(text); m != nil {
			return func(block []line) { l.run(s, m[1:], block) }
		}
	}
	return nil
}

func (s *script) statement(at, text string) func(block []line) {
	for _, f := range slices.SortedStableFunc(slices.Values(forms), func(a, b form) int {
		return len(strings.Fields(b.words)) - len(strings.Fields(a.words))
	}) {
		if m := pattern(f.words).FindStringSubmatch(text); m != nil {
			return func([]line) { f.run(s, m[1:]) }
		}
	}
	s.Fatalf("%s: no such statement: %q", at, text)
	return nil
}

// play does what the lines say. The clients finish what they do in any case.
func (s *script) play(lines []line) {
	for _, l := range lines {
		func() {
			was := s.Failed()
			defer func() {
				if s.Failed() && !was && l.block == nil {
					s.Logf("at %s: %s", l.at, l.text)
				}
			}()
			l.run(l.block)
		}()
	}
}

// set returns the servers that words name.
func (s *script) set(words string) (out []*node) {
	for _, w := range strings.Fields(words) {
		name, without := strings.CutPrefix(w, "-")
		of := s.sets[name]
		if name == "all" {
			of = s.nodes
		} else if at := slices.Index(names(s.nodes), name); of == nil && at >= 0 {
			of = []*node{s.nodes[at]}
		}
		s.endIf(len(of) == 0, "there is no server %q", name)
		if without {
			out = slices.DeleteFunc(slices.Clone(out), func(n *node) bool { return contains(of, n) })
		} else {
			out = append(slices.Clone(out), of...)
		}
	}
	return out
}

func (s *script) one(word string) *node {
	of := s.set(word)
	s.endIf(len(of) != 1, "%q are %d servers", word, len(of))
	return of[0]
}

// name gives names to the first servers of a set.
func (s *script) name(words string, of []*node) {
	for i, w := range strings.Fields(words) {
		s.endIf(i >= len(of), "there is no server for the name %q", w)
		s.sets[w] = of[i : i+1]
	}
}

func (s *script) each(words string, do func(*node)) {
	for _, n := range s.set(words) {
		do(n)
	}
}

func (s *script) pairs(from, to string, do func(x, y *node)) {
	for _, x := range s.set(from) {
		for _, y := range s.set(to) {
			if x != y {
				do(x, y)
			}
		}
	}
}

// move gives stopped servers other addresses.
func (s *script) move(of []*node, to func(*node) string) {
	changesAddresses(s.T)
	for _, n := range of {
		n.host = to(n)
	}
}

func (s *script) number(word string) int { return testenv.Must(strconv.Atoi(word))(s) }

func (s *script) duration(word string) time.Duration {
	return testenv.Must(time.ParseDuration(word))(s)
}

func (s *script) between(from, to string) time.Duration {
	return s.duration(from) + time.Duration(s.rand.Int64N(int64(s.duration(to)-s.duration(from))))
}

// atMost checks how much a number has grown since a script noted it.
func (s *script) atMost(a []string, now uint64) {
	grown := now - s.numbers[a[1]]
	s.failIf(grown > uint64(s.number(a[0])), "%d since %s", grown, a[1])
}

// refusedWith ends the scenario if a request did not end with a code as words of gRPC; "" is success.
func (s *script) refusedWith(code string, err error) {
	want := codes.OK
	if code != "" {
		testenv.NoError(s, want.UnmarshalJSON([]byte(strconv.Quote(code))))
	}
	s.endIf(status.Code(err) != want, "it ended with %v, want %v", err, want)
}

// member is the first server that is so, as the leader knows.
func (s *script) member(so func(Member) bool) *node {
	members := s.leader().running().cluster.Members()
	i := slices.IndexFunc(members, so)
	s.endIf(i < 0, "there is no such server")
	return s.one(members[i].Name)
}

// named is the name of the server that a word stands for, or the word if there is none.
func (s *script) named(word string) string {
	if of := s.sets[word]; len(of) == 1 {
		return of[0].name
	}
	return word
}

// survey says whether a survey of the members by one server finds only another one to be so.
func (s *script) survey(a []string, so func(MemberState) bool) bool {
	return !slices.ContainsFunc(s.one(a[0]).running().cluster.Survey(s.within(time.Second)), func(m MemberState) bool {
		return so(m) != (m.Name == s.one(a[1]).name)
	})
}

func (s *script) withoutLeader(word string) time.Time {
	since, _ := s.one(word).running().Health().WithoutLeader()
	return since
}

func (s *script) transferAny(code string) {
	s.refusedWith(code, s.leader().running().cluster.TransferLeadership(s.within(20*time.Second)))
}

func (s *script) transfer(to, code string) {
	s.refusedWith(code, transferBetween(s.within(10*time.Second), s.leader().running(), s.one(to).running()))
}

func (s *script) takeOut(victim, through, code string) {
	s.refusedWith(code, s.one(through).running().cluster.RemoveMember(s.within(20*time.Second), s.named(victim)))
}

func (s *script) promote(who, through, code string) {
	s.refusedWith(code, s.one(through).running().cluster.PromoteMember(s.within(10*time.Second), s.named(who)))
}

// fencedWrite writes in a term at a server.
func (s *script) fencedWrite(a []string, within time.Duration) error {
	n := s.one(a[0])
	value := fmt.Sprintf("fenced %d %d", s.seed, s.clock.Add(1))
	return s.fenced(s.within(within), n.name, n.running().Client().KV, "fenced", value, s.numbers[a[1]]).err
}
