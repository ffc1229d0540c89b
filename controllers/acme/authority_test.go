// SPDX-License-Identifier: Apache-2.0

package acme_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/controllers/acme"
)

const directoryURL = "https://ca.example/directory"

// problem is an error of the authority's.
type problem struct {
	status     int
	kind       string
	detail     string
	retryAfter time.Duration
}

// authority is an ACME server in fake time. It checks no signatures.
type authority struct {
	// life is that of certificates, takes how long validating and issuing each take, skew how far its clock is ahead.
	life, takes, skew time.Duration
	// visit asks for the answer to a challenge, as from the internet.
	visit func(host, path string) (string, error)
	// thumbprint is that of the account which orders.
	thumbprint func() string
	// after is called after each request, outside of the lock.
	after func(n int, path string)

	mu          sync.Mutex
	key         crypto.Signer
	requests    []string
	account     bool
	noAccounts  *problem            // for new accounts
	noOrders    *problem            // for new orders
	refused     map[string]*problem // by host, of validations
	orders      []*caOrder
	validations map[string][]time.Time // by host
	failures    map[string][]time.Time
	issued      map[string][]*x509.Certificate // by the first host
}

type caOrder struct {
	hosts     []string
	accepted  []time.Time // by host
	settled   []bool
	outcome   []*problem
	finalized time.Time
	csr       *x509.CertificateRequest
	chain     []byte
}

func newAuthority() *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return &authority{
		life: 90 * 24 * time.Hour, takes: 2 * time.Second, key: key, refused: map[string]*problem{},
		validations: map[string][]time.Time{}, failures: map[string][]time.Time{}, issued: map[string][]*x509.Certificate{},
	}
}

// RoundTrip implements http.RoundTripper.
func (a *authority) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	status, header, body := a.serve(r)
	a.requests = append(a.requests, r.URL.Path)
	n := len(a.requests)
	a.mu.Unlock()
	if a.after != nil {
		a.after(n, r.URL.Path)
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	header.Set("Date", time.Now().Add(a.skew).UTC().Format(http.TimeFormat))
	header.Set("Replay-Nonce", rand.Text())
	return &http.Response{
		StatusCode: status, Status: strconv.Itoa(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header,
		Body: io.NopCloser(bytes.NewReader(body)), Request: r,
	}, nil
}

func answer(status int, location string, value any) (int, http.Header, []byte) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	h := http.Header{}
	if location != "" {
		h.Set("Location", "https://ca.example"+location)
	}
	return status, h, text
}

func (p *problem) answer() (int, http.Header, []byte) {
	status, h, text := answer(p.status, "", p.value())
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(p.retryAfter/time.Second)))
	}
	return status, h, text
}

func (p *problem) value() map[string]any {
	return map[string]any{"type": acme.URN + p.kind, "detail": p.detail, "status": p.status}
}

// payload reads what a JWS holds.
func payload(r *http.Request, to any) {
	var jws struct{ Payload string }
	if err := json.NewDecoder(r.Body).Decode(&jws); err != nil {
		return
	}
	text, err := base64.RawURLEncoding.DecodeString(jws.Payload)
	if err != nil || len(text) == 0 {
		return
	}
	if err := json.Unmarshal(text, to); err != nil {
		panic(err)
	}
}

func (a *authority) serve(r *http.Request) (int, http.Header, []byte) {
	const at = "https://ca.example"
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch parts[0] {
	case "directory":
		return answer(200, "", map[string]any{"newNonce": at + "/nonce", "newAccount": at + "/account", "newOrder": at + "/order", "meta": map[string]string{"termsOfService": at + "/terms"}})
	case "nonce":
		return answer(200, "", nil)
	case "account":
		switch {
		case a.noAccounts != nil:
			return a.noAccounts.answer()
		case len(parts) == 1 && !a.account:
			a.account = true
			return answer(201, "/account/1", map[string]string{"status": "valid"})
		}
		return answer(200, "/account/1", map[string]string{"status": "valid"})
	case "order":
		return a.order(r, parts[1:])
	}
	i, err := strconv.Atoi(parts[1])
	if err != nil || i >= len(a.orders) {
		return (&problem{status: 404, kind: "malformed", detail: "no such thing"}).answer()
	}
	o := a.orders[i]
	if parts[0] == "cert" {
		h := http.Header{"Content-Type": {"application/pem-certificate-chain"}}
		return 200, h, o.chain
	}
	j, err := strconv.Atoi(parts[2])
	if err != nil {
		panic(err)
	}
	if parts[0] == "challenge" && o.accepted[j].IsZero() {
		o.accepted[j] = time.Now()
	}
	return a.authorization(parts[0], i, j)
}

func (a *authority) authorization(kind string, i, j int) (int, http.Header, []byte) {
	o := a.orders[i]
	a.settle(o)
	state := "pending"
	challenge := map[string]any{"type": "http-01", "url": fmt.Sprintf("https://ca.example/challenge/%d/%d", i, j), "token": fmt.Sprintf("tok%d-%d", i, j)}
	if o.settled[j] {
		if state = "valid"; o.outcome[j] != nil {
			state = "invalid"
			challenge["error"] = o.outcome[j].value()
		}
	}
	if challenge["status"] = state; state == "pending" && !o.accepted[j].IsZero() {
		challenge["status"] = "processing"
	}
	if kind == "challenge" {
		return answer(200, "", challenge)
	}
	return answer(200, "", map[string]any{
		"status": state, "identifier": map[string]string{"type": "dns", "value": o.hosts[j]},
		"challenges": []any{map[string]any{"type": "dns-01", "url": "https://ca.example/none", "token": "x", "status": "pending"}, challenge},
	})
}

// settle ends the validations whose time has come.
func (a *authority) settle(o *caOrder) {
	for j, host := range o.hosts {
		if o.settled[j] || o.accepted[j].IsZero() || time.Since(o.accepted[j]) < a.takes {
			continue
		}
		o.settled[j] = true
		a.validations[host] = append(a.validations[host], time.Now())
		o.outcome[j] = a.refused[host]
		if o.outcome[j] == nil {
			i := slices.Index(a.orders, o)
			token := fmt.Sprintf("tok%d-%d", i, j)
			if got, err := a.visit(host, "/.well-known/acme-challenge/"+token); err != nil || got != token+"."+a.thumbprint() {
				o.outcome[j] = &problem{status: 403, kind: "unauthorized", detail: fmt.Sprintf("the answer is %q (%v)", got, err)}
			}
		}
		if o.outcome[j] != nil {
			a.failures[host] = append(a.failures[host], time.Now())
		}
	}
}

func (a *authority) order(r *http.Request, parts []string) (int, http.Header, []byte) {
	if len(parts) == 0 {
		if a.noOrders != nil {
			return a.noOrders.answer()
		}
		var asked struct{ Identifiers []struct{ Value string } }
		payload(r, &asked)
		o := &caOrder{}
		for _, id := range asked.Identifiers {
			o.hosts = append(o.hosts, id.Value)
		}
		n := len(o.hosts)
		o.accepted, o.settled, o.outcome = make([]time.Time, n), make([]bool, n), make([]*problem, n)
		a.orders = append(a.orders, o)
		return a.orderState(201, len(a.orders)-1)
	}
	i, err := strconv.Atoi(parts[0])
	if err != nil || i >= len(a.orders) {
		return (&problem{status: 404, kind: "malformed", detail: "no such order"}).answer()
	}
	if len(parts) == 2 {
		var asked struct{ CSR string }
		payload(r, &asked)
		der, err := base64.RawURLEncoding.DecodeString(asked.CSR)
		if err == nil {
			a.orders[i].csr, err = x509.ParseCertificateRequest(der)
		}
		if err != nil || !slices.Equal(a.orders[i].csr.DNSNames, a.orders[i].hosts) {
			return (&problem{status: 400, kind: "badCSR", detail: fmt.Sprint("not the names of the order ", err)}).answer()
		}
		a.orders[i].finalized = time.Now()
	}
	return a.orderState(200, i)
}

func (a *authority) orderState(status, i int) (int, http.Header, []byte) {
	o := a.orders[i]
	a.settle(o)
	at := fmt.Sprintf("/order/%d", i)
	out := map[string]any{"finalize": "https://ca.example" + at + "/finalize"}
	var urls []string
	for j := range o.hosts {
		urls = append(urls, fmt.Sprintf("https://ca.example/authz/%d/%d", i, j))
	}
	out["authorizations"] = urls
	failed := slices.IndexFunc(o.outcome, func(p *problem) bool { return p != nil })
	switch {
	case failed >= 0:
		out["status"], out["error"] = "invalid", o.outcome[failed].value()
	case slices.Contains(o.settled, false):
		out["status"] = "pending"
	case o.finalized.IsZero():
		out["status"] = "ready"
	case time.Since(o.finalized) < a.takes:
		out["status"] = "processing"
	default:
		if o.chain == nil {
			a.issue(o)
		}
		out["status"], out["certificate"] = "valid", fmt.Sprintf("https://ca.example/cert/%d", i)
	}
	return answer(status, at, out)
}

func (a *authority) issue(o *caOrder) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(a.orders))), Subject: pkix.Name{}, DNSNames: o.hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(a.life - time.Hour),
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, root, o.csr.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	o.chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.issued[o.hosts[0]] = append(a.issued[o.hosts[0]], c)
}

// did says how often there were requests for a path.
func (a *authority) did(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, p := range a.requests {
		if p == path {
			n++
		}
	}
	return n
}

func (a *authority) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

var errUnreachable = errors.New("no answer")
