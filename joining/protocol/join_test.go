// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRequestSurvivesTheWire(t *testing.T) {
	want := &Request{
		Role: token.RoleAgent, Program: "v1", Time: time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC), Proof: Proof{Kind: token.RoleBootstrap, ID: "abcdef", MAC: []byte{1, 2}},
		Node: Node{Name: "n", Addresses: []netip.Addr{netip.MustParseAddr("fd00::1")}, Password: "p", KubeletRequest: []byte{3}, ServingRequest: []byte{4}, NetworkRequest: []byte{5}},
	}
	var wire bytes.Buffer
	testenv.NoError(t, write(&wire, maxRequest, want))
	got, err := ReadRequest(&wire)
	testenv.False(t, err != nil || !reflect.DeepEqual(got, want), "%+v, %v, want %+v", got, err, want)
}

func TestTooLongMessagesAreRefused(t *testing.T) {
	testenv.Fails(t, write(&bytes.Buffer{}, maxRequest, Request{Program: strings.Repeat("x", maxRequest)}), "a request was sent that no server reads")
	testenv.WantError(t, testenv.Err(ReadRequest(bytes.NewReader(binary.BigEndian.AppendUint32(nil, maxRequest+1)))), "at most")
}

// FuzzReadRequest: whatever comes is a request or an error, and costs no more than its length allows.
func FuzzReadRequest(f *testing.F) {
	var wire bytes.Buffer
	testenv.NoError(f, write(&wire, maxRequest, Request{Node: Node{Name: "n", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}))
	f.Add(wire.Bytes())
	f.Add([]byte("\x00\x00\x00\x04null"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := ReadRequest(bytes.NewReader(body))
		testenv.False(t, err == nil && q == nil, "neither a request nor an error")
	})
}

// FuzzReadAnswer: a program that passes for a server may say anything; a machine takes an answer or has an error, and
// an answer names the authority of the connection or is not taken.
func FuzzReadAnswer(f *testing.F) {
	seen := &x509.Certificate{Raw: []byte("a certificate")}
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: seen.Raw})
	for _, a := range []*Response{
		{Refusal: Refuse(CodeBusy, "later")},
		{MAC: []byte{1}, ServerCA: own, Kubelet: []byte("k"), Server: &Server{Files: map[string][]byte{"tls/a": {1}}, Peers: []string{"10.0.0.1:6443"}}},
		{ServerCA: append([]byte("-----BEGIN X-----\n"), own...)},
	} {
		var wire bytes.Buffer
		testenv.NoError(f, a.Write(&wire))
		f.Add(wire.Bytes()[4:])
	}
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, body []byte) {
		a := &Response{}
		if err := read(bytes.NewReader(framed(body)), maxAnswer, a); err != nil {
			return
		}
		v := verifier{presentedRoot: seen}
		if err := v.sameRoot(a.ServerCA); err == nil && !bytes.Contains(a.ServerCA, []byte("-----BEGIN ")) {
			t.Errorf("%q names the authority", a.ServerCA)
		}
		var wire bytes.Buffer
		if err := a.Write(&wire); err != nil {
			t.Fatal(err) // what was read can be written
		}
		again := &Response{}
		if err := read(&wire, 2*maxAnswer, again); err != nil || !bytes.Equal(again.ServerCA, a.ServerCA) || (again.Server == nil) != (a.Server == nil) {
			t.Errorf("%v\n got %+v\nwant %+v", err, again, a)
		}
	})
}

// framed is a message as it is sent.
func framed(text []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}
