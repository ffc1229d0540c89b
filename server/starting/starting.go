// SPDX-License-Identifier: Apache-2.0

// Package starting serves this machine's programs while a server's own API does not answer yet. They get an error that
// says so, or use another server that is ready. The log shows the operator why the store waits.
//
// It owns the choice of that other server. It never changes the store: a store that waits continues by itself.
package starting

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/server/handle"
	"github.com/coracle-k8s/coracle/server/pki"
)

const (
	// startDelay is how long a start, and the store's wait for others, may take before this machine's programs get
	// an error or another server. Until then they wait: clients give a TLS handshake ten seconds.
	startDelay = 8 * time.Second
	// readyInterval is how often the other servers are asked after that whether their API is ready. readyTimeout
	// limits one request.
	readyInterval, readyTimeout = 2 * time.Second, 3 * time.Second
	// maxMissed is after how many requests in a row without a ready server the last ready one is dropped.
	maxMissed = 3
	// responseTimeout limits the response to a program in the meantime. maxRequest limits how much of its request is
	// read, in bytes.
	responseTimeout, maxRequest = 10 * time.Second, 1 << 20
)

// Options are the parameters of New.
type Options struct {
	// Begin makes a function serve the connections of this machine's programs. It is called at most once.
	Begin func(answer func(net.Conn))
	PKI   *pki.PKI
	// ServerName is a name in the certificates of all servers.
	ServerName string
	// Address returns the address at which the other servers reach this one. Port is the port that this machine's
	// programs use.
	Address func() string
	Port    int
	Store   *handle.Store
	// Question returns the request by which another server checks whether it can connect to this one. Its Address is
	// not set.
	Question func() protocol.Call
	Now      func() time.Time
	// Part, when set, shows why the store waits.
	Part   *status.Part
	Logger *slog.Logger
}

// Starting tracks the start of one server.
type Starting struct {
	o         Options
	beginOnce func()        // calls Options.Begin once
	apiReady  chan struct{} // closed when the API answers
	// failoverTargets are the other servers while one of them serves this machine's programs. That one is the first. It
	// is nil while none does.
	failoverTargets atomic.Pointer[[]string]
	failedOver      chan struct{} // closed by SetFailedOver
	failoverOnce    sync.Once     // for failedOver
	targetsChanged  timers.Signal // sent when failoverTargets has changed
	readyTimeout    time.Duration // the constant, except in tests
}

// New returns the Starting of a server that is not ready.
func New(o Options) *Starting {
	s := &Starting{
		o: o, apiReady: make(chan struct{}), failedOver: make(chan struct{}), targetsChanged: timers.NewSignal(),
		readyTimeout: readyTimeout,
	}
	s.beginOnce = sync.OnceFunc(func() { o.Begin(s.answer) })
	return s
}

// FailedOver returns a channel that is closed when another server's API serves this machine's programs because this
// server's store waits. It may never be closed.
func (s *Starting) FailedOver() <-chan struct{} { return s.failedOver }

// SetFailedOver closes the channel of FailedOver.
func (s *Starting) SetFailedOver() { s.failoverOnce.Do(func() { close(s.failedOver) }) }

// BeginWhenSlow calls Options.Begin when the start takes long.
func (s *Starting) BeginWhenSlow(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-s.apiReady:
	case <-time.After(startDelay):
		s.beginOnce()
	}
}

// Serves records that the API answers.
func (s *Starting) Serves() {
	s.failoverTargets.Store(nil)
	close(s.apiReady)
}

// FindFailoverTarget searches for another server whose API this machine's programs can use while the store waits, until
// ctx is done. That server remains in use until this server's API answers. A server that was removed from the cluster
// is no member, and its node should not exist. Requests of its programs are passed on nevertheless
// (server/serviceability). Another server has to confirm first that this one was not removed.
func (s *Starting) FindFailoverTarget(ctx context.Context, store membershipStore, others func() []string) {
	s.findFailoverTarget(ctx, store, others, s.readyOf)
}

func (s *Starting) findFailoverTarget(ctx context.Context, store membershipStore, others func() []string,
	readyOf func(context.Context, []string) string) {
	pause := startDelay
	var ready readyServer
	for last := ""; ; pause = readyInterval {
		if !timers.Sleep(ctx, pause) {
			return
		}
		s.beginOnce()
		now, list := "", slices.Concat([]string{last}, others())
		if store.MembershipConfirmed() {
			now = ready.update(readyOf(ctx, list))
		}
		if ctx.Err() != nil {
			return
		}
		if now == last {
			continue
		}
		if last = now; now == "" {
			s.failoverTargets.Store(nil)
		} else {
			list = slices.DeleteFunc(slices.Insert(list, 0, now), func(a string) bool { return a == "" || a == s.o.Address() })
			s.failoverTargets.Store(new(unique(list)))
		}
		s.targetsChanged.Send()
	}
}

// membershipStore is a store that knows whether the others have confirmed that this server is a member.
type membershipStore interface{ MembershipConfirmed() bool }

// readyServer is the server to which this machine's programs connect.
type readyServer struct {
	address string // empty for none
	missed  int    // number of requests in a row without a ready server
}

// update takes the result of a request, and returns the server that is used from now on. That is the former one for a
// few requests without a result: without a leader no server is ready, and an election takes seconds.
func (r *readyServer) update(found string) string {
	if found == "" && r.missed < maxMissed {
		r.missed++
		return r.address
	}
	r.address, r.missed = found, 0
	return found
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// readyOf returns the first address at which another server's API is ready, empty for none.
func (s *Starting) readyOf(ctx context.Context, addresses []string) string {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.o.PKI.CAPEM(pki.ServerCA))
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: s.o.ServerName, Time: s.o.Now, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}
	client := &http.Client{Timeout: s.readyTimeout, Transport: transport}
	for _, address := range unique(addresses) {
		if address == "" || address == s.o.Address() {
			continue
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/readyz", nil)
		if err != nil {
			continue
		}
		answer, err := client.Do(request)
		if err != nil {
			continue
		}
		_ = answer.Body.Close() // the body is not needed
		if answer.StatusCode == http.StatusOK {
			return address
		}
	}
	return ""
}

// FailoverTargets returns the other servers while one of them serves this machine's programs instead of this server,
// and nil otherwise.
func (s *Starting) FailoverTargets() []string {
	if list := s.failoverTargets.Load(); list != nil {
		return *list
	}
	return nil
}

// answer serves a connection of this machine's programs with the error that there is no API yet.
func (s *Starting) answer(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(responseTimeout)) // a later call returns the error again
	t := tls.Server(c, &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.o.PKI.Serving() },
		NextProtos:     []string{"http/1.1"}, MinVersion: tls.VersionTLS12, CipherSuites: clusterconfig.CipherSuites(),
	})
	defer func() { _ = t.Close() }() // the client has the response, or has ended
	request, err := http.ReadRequest(bufio.NewReader(t))
	if err != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, request.Body, maxRequest) // closing earlier would keep it from a client that still writes
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonServiceUnavailable, Code: http.StatusServiceUnavailable,
		Message: s.waitReason(),
	})
	if err != nil {
		return
	}
	answer := http.Response{
		StatusCode: http.StatusServiceUnavailable, ProtoMajor: 1, ProtoMinor: 1, Request: request, Close: true,
		Header:        http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-cache, private"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(string(body))),
	}
	_ = answer.Write(t) // the client has ended, or asks again
}

// waitReason returns the error message for this machine's programs.
func (s *Starting) waitReason() string {
	what := "its API server is not ready yet"
	switch store := s.o.Store.Opened(); {
	case store == nil:
		what = "its store is being opened"
	case store.Health().Removed():
		what = "it was removed from the cluster"
	case s.o.Store.Ready() == nil:
		what = "its store waits for the cluster's other servers"
	}
	return "the server on this machine, at port " + strconv.Itoa(s.o.Port) +
		", is starting: " + what + ". Pods keep running. `coracle status` there says more"
}
