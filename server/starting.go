// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
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
	"github.com/coracle-k8s/coracle/server/pki"
)

const (
	// startPatience is how long a start, and the store's wait for others, may take before this machine's programs are
	// told, or are given another server. Until then they wait: clients give a TLS handshake ten seconds.
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

// starting is what a server has for its machine's programs as long as its own API does not answer.
type starting struct {
	begin  func()        // has them answered
	served chan struct{} // closed when the API answers
	// elsewhere are the other servers while one of them is to answer in this one's place, that one first; nil while
	// none is.
	elsewhere atomic.Pointer[[]string]
	away      chan struct{} // closed when that has begun
	once      sync.Once     // for away
	news      chan struct{} // capacity 1: elsewhere has changed
}

func newStarting(s *Server) *starting {
	return &starting{
		begin:  sync.OnceFunc(func() { s.localFailover.Begin(s.answerStarting) }),
		served: make(chan struct{}), away: make(chan struct{}), news: make(chan struct{}, 1),
	}
}

// Away is closed when another server's API answers this machine's programs because this one's store waits; it may never
// be.
func (s *Server) Away() <-chan struct{} { return s.starting.away }

// answerWhileStarting has this machine's programs answered when the start takes long.
func (s *Server) answerWhileStarting(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-s.starting.served:
	case <-time.After(startPatience):
		s.starting.begin()
	}
}

// serves says that the API answers.
func (s *Server) serves() {
	s.starting.elsewhere.Store(nil)
	close(s.starting.served)
}

// findElsewhere looks for another server whose API this machine's programs can use while the store waits, until ctx is
// done. The one that was found goes on being used until this one's API answers. One that was taken out is no member and
// has no node that is to be there; what asks it is passed on all the same (cannotServe). Whether it was, another server
// has to say first.
func (s *Server) findElsewhere(ctx context.Context, store counted, others func() []string, readyOf func(context.Context, []string) string) {
	st, pause := s.starting, startPatience
	var ready readyServer
	for last := ""; ; pause = askReadyEvery {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		st.begin()
		now, list := "", slices.Concat([]string{last}, others())
		if store.Counted() {
			now = ready.update(readyOf(ctx, list))
		}
		if ctx.Err() != nil {
			return
		}
		if now == last {
			continue
		}
		if last = now; now == "" {
			st.elsewhere.Store(nil)
		} else {
			list = slices.DeleteFunc(slices.Insert(list, 0, now), func(a string) bool { return a == "" || a == s.peerAddress() })
			st.elsewhere.Store(new(unique(list)))
		}
		select {
		case st.news <- struct{}{}:
		default:
		}
	}
}

// counted is a store that knows whether the others count this server among them.
type counted interface{ Counted() bool }

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
func (s *Server) readyOf(ctx context.Context, addresses []string) string {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.pki.CAPEM(pki.ServerCA))
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: everyServer, Time: s.o.Clock.Now, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}
	client := &http.Client{Timeout: askReadyPatience, Transport: transport}
	for _, address := range unique(addresses) {
		if address == "" || address == s.peerAddress() {
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

// elsewhere are the other servers while one of them is to answer this machine's programs although this one has not
// begun.
func (s *Server) elsewhere() []string {
	if list := s.starting.elsewhere.Load(); list != nil {
		return *list
	}
	return nil
}

// answerStarting tells a program of this machine that there is no API yet.
func (s *Server) answerStarting(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(answerPatience)) // an error comes again
	t := tls.Server(c, &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.pki.Serving() },
		NextProtos:     []string{"http/1.1"}, MinVersion: tls.VersionTLS12, CipherSuites: clusterconfig.CipherSuites(),
	})
	defer func() { _ = t.Close() }() // who asked has the answer, or has gone
	request, err := http.ReadRequest(bufio.NewReader(t))
	if err != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, request.Body, mostAsked) // closing the connection before would keep the answer from whoever still writes
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonServiceUnavailable, Code: http.StatusServiceUnavailable, Message: s.whyStarting(),
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

// whyStarting is what a program of this machine is told.
func (s *Server) whyStarting() string {
	what := "its API server is not ready yet"
	switch store := s.opened.Load(); {
	case store == nil:
		what = "its store is being opened"
	case store.Health().Removed():
		what = "it was taken out of the cluster"
	case s.store.Load() == nil:
		what = "its store waits for the cluster's other servers"
	}
	return "the server on this machine, at port " + strconv.Itoa(s.o.Port) + ", is starting: " + what + ". What runs in pods goes on. `coracle status` there says more"
}
