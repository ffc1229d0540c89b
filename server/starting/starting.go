// SPDX-License-Identifier: Apache-2.0

// Package starting is what a server does while its own API does not answer yet. This machine's programs get that
// answer, or use another server that is ready; and the log tells the operator why the store waits.
//
// It owns the choice of that other server. It never touches the store: a store that waits goes on by itself.
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
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/pki"
)

const (
	// startPatience is how long a start, and the store's wait for others, may take before this machine's programs are
	// answered, or are given another server. Until then they wait: clients give a TLS handshake ten seconds.
	startPatience = 8 * time.Second
	// askReadyEvery is how often the other servers are asked then whether their API is ready, askReadyPatience bounds
	// one question.
	askReadyEvery, askReadyPatience = 2 * time.Second, 3 * time.Second
	// mostMissed is how many questions in a row may find no server that is ready before the one that was is given up.
	mostMissed = 3
	// answerPatience bounds the answer to a program that asks meanwhile, mostAsked what is read of its question, in
	// bytes.
	answerPatience, mostAsked = 10 * time.Second, 1 << 20
)

// Options are what a server gives.
type Options struct {
	// Begin has this machine's programs answered by a function; it is called once at most.
	Begin func(answer func(net.Conn))
	// PKI is the server's as soon as it is made.
	PKI func() *pki.PKI
	// ServerName is a name that the certificates of all servers are for.
	ServerName string
	// Address is where the other servers reach this one, Port the port at which its programs ask.
	Address func() string
	Port    int
	// Opened is the store as soon as it is open, Answered the same when it has answered.
	Opened, Answered *atomic.Pointer[raftstore.Store]
	// Question is what another server is asked whether it reaches this one; its address is not in it.
	Question func() protocol.Question
	Now      func() time.Time
	// Part, when set, shows why the store waits.
	Part   *status.Part
	Logger *slog.Logger
}

// Starting is the start of one server.
type Starting struct {
	o      Options
	begin  func()        // has this machine's programs answered
	served chan struct{} // closed when the API answers
	// failoverTargets are the other servers while one of them is to answer in this one's place, that one first; nil
	// while none is.
	failoverTargets atomic.Pointer[[]string]
	failedOver      chan struct{} // closed when that has begun
	once            sync.Once     // for failedOver
	news            timers.Signal // failoverTargets has changed
	askPatience     time.Duration // askReadyPatience, apart from tests
}

// New makes the Starting of a server that is not ready.
func New(o Options) *Starting {
	s := &Starting{
		o: o, served: make(chan struct{}), failedOver: make(chan struct{}), news: timers.NewSignal(), askPatience: askReadyPatience,
	}
	s.begin = sync.OnceFunc(func() { o.Begin(s.answer) })
	return s
}

// FailedOver is closed when another server's API answers this machine's programs because this one's store waits; it may
// never be.
func (s *Starting) FailedOver() <-chan struct{} { return s.failedOver }

// SetFailedOver says that it does.
func (s *Starting) SetFailedOver() { s.once.Do(func() { close(s.failedOver) }) }

// BeginWhenSlow has this machine's programs served by another server when the start takes long.
func (s *Starting) BeginWhenSlow(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-s.served:
	case <-time.After(startPatience):
		s.begin()
	}
}

// Serves says that the API answers.
func (s *Starting) Serves() {
	s.failoverTargets.Store(nil)
	close(s.served)
}

// FindFailoverTarget looks for another server whose API this machine's programs can use while the store waits, until
// ctx is done. The one that was found goes on being used until this one's API answers. One that was taken out is no
// member and has no node that is to be there; what asks it is passed on all the same (server/serviceability). Whether
// it was, another server has to say first.
func (s *Starting) FindFailoverTarget(ctx context.Context, store counted, others func() []string) {
	s.findFailoverTarget(ctx, store, others, s.readyOf)
}

func (s *Starting) findFailoverTarget(ctx context.Context, store counted, others func() []string,
	readyOf func(context.Context, []string) string) {
	pause := startPatience
	var ready readyServer
	for last := ""; ; pause = askReadyEvery {
		if !timers.Sleep(ctx, pause) {
			return
		}
		s.begin()
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
		s.news.Send()
	}
}

// counted is a store that knows whether the others count this server among them.
type counted interface{ MembershipConfirmed() bool }

// readyServer is the server that answers in this one's place.
type readyServer struct {
	address string // "" for none
	missed  int    // so many questions in a row found no server that is ready
}

// update takes what a question has found, and returns the server that is used from now on. That is the one of before
// for a few questions that find none: without a leader no server is ready, and an election is over within seconds.
func (r *readyServer) update(found string) string {
	if found == "" && r.missed < mostMissed {
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

// readyOf is the first of some addresses at which another server's API says that it is ready; "" for none.
func (s *Starting) readyOf(ctx context.Context, addresses []string) string {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.o.PKI().CAPEM(pki.ServerCA))
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: s.o.ServerName, Time: s.o.Now, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}
	client := &http.Client{Timeout: s.askPatience, Transport: transport}
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
		_ = answer.Body.Close() // it was not read
		if answer.StatusCode == http.StatusOK {
			return address
		}
	}
	return ""
}

// FailoverTargets are the other servers while one of them is to answer this machine's programs although this one has
// not begun.
func (s *Starting) FailoverTargets() []string {
	if list := s.failoverTargets.Load(); list != nil {
		return *list
	}
	return nil
}

// answer tells a program of this machine that there is no API yet.
func (s *Starting) answer(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(answerPatience)) // an error comes again
	t := tls.Server(c, &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.o.PKI().Serving() },
		NextProtos:     []string{"http/1.1"}, MinVersion: tls.VersionTLS12, CipherSuites: clusterconfig.CipherSuites(),
	})
	defer func() { _ = t.Close() }() // who asked has the answer, or has gone
	request, err := http.ReadRequest(bufio.NewReader(t))
	if err != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, request.Body, mostAsked) // closing before would keep the answer from a client that still writes
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonServiceUnavailable, Code: http.StatusServiceUnavailable,
		Message: s.why(),
	})
	if err != nil {
		return
	}
	answer := http.Response{
		StatusCode: http.StatusServiceUnavailable, ProtoMajor: 1, ProtoMinor: 1, Request: request, Close: true,
		Header:        http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-cache, private"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(string(body))),
	}
	_ = answer.Write(t) // who asked has gone, or asks again
}

// why is the answer to a program of this machine.
func (s *Starting) why() string {
	what := "its API server is not ready yet"
	switch store := s.o.Opened.Load(); {
	case store == nil:
		what = "its store is being opened"
	case store.Health().Removed():
		what = "it was removed from the cluster"
	case s.o.Answered.Load() == nil:
		what = "its store waits for the cluster's other servers"
	}
	return "the server on this machine, at port " + strconv.Itoa(s.o.Port) +
		", is starting: " + what + ". What runs in pods goes on. `coracle status` there says more"
}
