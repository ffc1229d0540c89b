// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Port is a TCP port at which this process listens. It is in the list of Ports until it is closed. Its connections are
// not in its table: its user adds them, or takes them from Bounded.
type Port struct {
	net.Listener
	// Table bounds the port's connections.
	Table *Table

	forget func()
}

// Listen opens a TCP port and lists it. All TCP ports of a server and an agent are opened by it, so that none is
// without a bound; ports_test.go names those that a library opens. The name is the port's use, and the network tcp,
// tcp4 or tcp6. The context is for resolving the address.
func Listen(ctx context.Context, name, network, address string, t *Table) (*Port, error) {
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return Keep(name, l, t), nil
}

// Keep lists a port that a library has opened.
func Keep(name string, l net.Listener, t *Table) *Port {
	return &Port{Listener: l, Table: t, forget: Note(name, l.Addr(), t)}
}

// Close closes the port and removes it from the list.
func (p *Port) Close() error {
	p.forget()
	return p.Listener.Close()
}

// File returns a duplicate of the port's descriptor, which the caller closes.
func (p *Port) File() (*os.File, error) {
	tcp, ok := p.Listener.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("a %T has no descriptor", p.Listener)
	}
	return tcp.File()
}

// Bounded returns a listener whose connections are in the port's table until they are closed, or until Identified is
// called for them. Connections from addresses that admits refuses are closed at once; nil admits all.
func (p *Port) Bounded(admits func(net.Addr) bool) *Listener {
	return &Listener{Listener: p, waiting: p.Table, admits: admits}
}

// namedTable is the table of one port in the list of ports.
type namedTable struct {
	name    string
	address net.Addr
	table   *Table
}

// ports are the TCP ports of this process. The list is the process's, as its sockets are.
var ports struct {
	sync.Mutex
	all map[*namedTable]bool
}

// Note adds a port to the list, whose listener only a library has, until forget is called. The number of its address is
// 0 if the library chooses it.
func Note(name string, at net.Addr, t *Table) (forget func()) {
	n := &namedTable{name, at, t}
	ports.Lock()
	defer ports.Unlock()
	if ports.all == nil {
		ports.all = map[*namedTable]bool{}
	}
	ports.all[n] = true
	return func() {
		ports.Lock()
		defer ports.Unlock()
		delete(ports.all, n)
	}
}

var (
	maxDesc = prometheus.NewDesc("coracle_tcp_connections_max",
		"How many connections a TCP port may have that count: those of clients that have not authenticated.", []string{"port", "address"}, nil)
	openDesc = prometheus.NewDesc("coracle_tcp_connections", "Connections of a TCP port that count.", []string{"port", "address"}, nil)
	// closedDesc is a counter of each port's table.
	closedDesc = prometheus.NewDesc("coracle_tcp_connections_closed_total", "Connections of a TCP port that were closed for newer ones.",
		[]string{"port", "address"}, nil)
)

// Metrics collects the list of TCP ports, with their bounds, for Prometheus.
type Metrics struct{}

// Describe implements prometheus.Collector.
func (Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{maxDesc, openDesc, closedDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector. A port that is opened again while its former listener is being closed is
// one, with the connections of both.
func (Metrics) Collect(to chan<- prometheus.Metric) {
	ports.Lock()
	all := slices.Collect(maps.Keys(ports.all))
	ports.Unlock()
	same := func(a, b *namedTable) int {
		return strings.Compare(a.name+" "+a.address.String(), b.name+" "+b.address.String())
	}
	slices.SortFunc(all, same)
	for len(all) > 0 {
		n, most, open, closed := all[0], 0, 0, uint64(0)
		for ; len(all) > 0 && same(all[0], n) == 0; all = all[1:] {
			nowOpen, nowClosed := all[0].table.count()
			most, open, closed = max(most, all[0].table.Max), open+nowOpen, closed+nowClosed
		}
		labels := []string{n.name, n.address.String()}
		to <- prometheus.MustNewConstMetric(maxDesc, prometheus.GaugeValue, float64(most), labels...)
		to <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(open), labels...)
		to <- prometheus.MustNewConstMetric(closedDesc, prometheus.CounterValue, float64(closed), labels...)
	}
}
