// SPDX-License-Identifier: Apache-2.0

// Package protocol is the protocol by which a machine becomes a part of the cluster: one question and one answer over
// one TLS 1.3 connection, which the cluster's port tells from others by its name in ALPN.
//
//	machine                                     server
//	  | -- ClientHello, ALPN coracle-join/1 ----> |
//	  | <-- certificate chain up to the root ---- |   the machine compares the root with the token's hash: a stranger
//	  |                                           |   in between learns nothing
//	  | -- Request, proof of the token ---------> |   a key is made on the machine and never leaves it: the server
//	  | <-- Answer, proof of the token ---------- |   only signs
//
// A proof is an HMAC under the token's secret of a value that only this TLS connection has (RFC 9266): the secret
// itself is never sent, a proof that was overheard is good for nothing else, and a server that cannot make one is not
// the cluster's. In place of a token a machine that has joined before shows its node's certificate in the TLS
// handshake.
//
// The package knows both ends of the conversation. Who may join is the server's matter (joining/server), what it is
// given the admission's (server/admission), and where credentials are kept the node's (joining/node).
package protocol

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/joining/token"
)

const (
	// Protocol is the name in ALPN.
	Protocol = "coracle-join/1"
	// ServerName is the common name of the certificate that answers. A node's certificates are of the same authority,
	// and carry the node's name there.
	ServerName = "kube-apiserver"

	// maxRequest and maxAnswer bound what is read of the other end, in bytes.
	maxRequest = 64 << 10
	maxAnswer  = 1 << 20
	// Patience bounds a whole conversation.
	Patience = 30 * time.Second
)

// Request is what a machine asks for.
type Request struct {
	// Role is what the machine wants to be; token.RoleAgent is a node without a server.
	Role token.Role `json:"role"`
	// Want is empty for a machine that joins, or that part of an answer which a node that has joined wants alone.
	Want string `json:"want,omitempty"`
	// Program is the version that asks, for the log.
	Program string `json:"program"`
	// Protocol is version.Protocol of the program; versions before the second do not say it. Ask fills it in.
	Protocol int `json:"protocol,omitempty"`
	// Time is the machine's clock.
	Time  time.Time `json:"time"`
	Proof Proof     `json:"proof"`
	// Node is the machine as a node. A server makes its own credentials: of it the name and the addresses count, and
	// the name is empty if it has no node.
	Node Node `json:"node"`
	// Reach, from who knows the server token, asks for nothing but whether a server is reached at an address.
	Reach *Reach `json:"reach,omitempty"`
}

// Reach is where a server thinks that the others reach it.
type Reach struct {
	Address  string `json:"address"` // host:port
	ServerID string `json:"serverID"`
}

// WantGossipKeys asks for the gossip keys and nothing else, by a node that shows its certificate.
const WantGossipKeys = "gossip-keys"

// Proof shows that the other end knows a token.
type Proof struct {
	// Kind says which one. Empty stands for the certificate of the TLS handshake.
	Kind token.Role `json:"kind,omitempty"`
	// ID is a bootstrap token's.
	ID string `json:"id,omitempty"`
	// MAC is under the token's secret.
	MAC []byte `json:"mac,omitempty"`
}

// Node is a machine as a node.
type Node struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	// External are further addresses at which the node is reached from outside of its network.
	External []netip.Addr `json:"external,omitempty"`
	// Password is a secret of the machine's own, made when it joined first: who has it is the node of that name.
	Password string `json:"password"`
	// The certificate requests are PKCS #10 in DER. Only their public keys count.
	KubeletRequest []byte `json:"kubeletRequest"`
	ServingRequest []byte `json:"servingRequest"`
	NetworkRequest []byte `json:"networkRequest"`
}

// Response is either a refusal or what the machine needs.
type Response struct {
	Refusal *Refusal `json:"refusal,omitempty"`
	// MAC shows that the server knows the token, which makes the rest worth believing.
	MAC []byte `json:"mac,omitempty"`

	Settings clusterconfig.Settings `json:"settings,omitzero"`
	// ServerCA and ClientCA are PEM, and so are the certificates, each with its chain.
	ServerCA []byte `json:"serverCA,omitempty"`
	ClientCA []byte `json:"clientCA,omitempty"`
	Kubelet  []byte `json:"kubelet,omitempty"`
	Serving  []byte `json:"serving,omitempty"`
	Network  []byte `json:"network,omitempty"`

	// Gossip are the keys with which members talk; none from a server that has none yet, or is of an earlier version.
	Gossip *clusterconfig.GossipKeys `json:"gossip,omitempty"`

	// Server is for a machine that becomes one.
	Server *Server `json:"server,omitempty"`
}

// Server is what makes a machine a server of the cluster: its secrets. Only who has shown the server token gets it.
type Server struct {
	// Files are the content of the files that all servers have in common, by their path below the server's folder:
	// authorities with their keys, the key of ServiceAccount tokens, encryption keys, join tokens.
	Files map[string][]byte `json:"files"`
	// Peers are the addresses of the servers' stores.
	Peers []string `json:"peers"`
	// NodePortRange and EncryptResources are settings that concern servers alone.
	NodePortRange    string   `json:"nodePortRange"`
	EncryptResources []string `json:"encryptResources,omitempty"`
	// Flags are those that each server is given, and in which they have to agree; none from an earlier version.
	Flags map[string]string `json:"flags,omitempty"`
}

// Code says why a machine was refused.
type Code string

// The codes. Those for which Passing is true end by themselves.
const (
	CodeToken       Code = "token"       // wrong, expired, or for something else
	CodeCertificate Code = "certificate" // the node's certificate is not accepted; a token is
	CodeClock       Code = "clock"
	CodeVersion     Code = "version" // too old or too new for the cluster
	CodeName        Code = "name"
	CodeAddress     Code = "address"
	CodeRequest     Code = "request" // not understood
	CodeStarting    Code = "starting"
	CodeBusy        Code = "busy"
	CodeInternal    Code = "internal"
)

// Refusal is a server's no. It is an error on both ends.
type Refusal struct {
	Code Code `json:"code"`
	// Message is for the person at the joining machine.
	Message string `json:"message"`
}

func (r *Refusal) Error() string { return r.Message }

// Passing says that the same question may be answered later.
func (r *Refusal) Passing() bool {
	return r.Code == CodeStarting || r.Code == CodeBusy || r.Code == CodeInternal
}

// Refuse makes a refusal.
func Refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// The two ends of a proof: one's cannot be sent back as the other's.
const (
	fromMachine = "machine"
	fromServer  = "server"
)

// MachineProof is what a machine sends to show that it knows t on a connection.
func MachineProof(s tls.ConnectionState, t token.Token, kind token.Role) (Proof, error) {
	mac, err := proof(s, fromMachine, kind, t)
	return Proof{Kind: kind, ID: t.ID, MAC: mac}, err
}

// Verify says whether the machine at the other end knows t.
func (p Proof) Verify(s tls.ConnectionState, t token.Token) bool {
	want, err := proof(s, fromMachine, p.Kind, t)
	return err == nil && hmac.Equal(want, p.MAC)
}

// ServerProof is what a server sends in turn.
func ServerProof(s tls.ConnectionState, t token.Token, kind token.Role) ([]byte, error) {
	return proof(s, fromServer, kind, t)
}

func proof(s tls.ConnectionState, from string, kind token.Role, t token.Token) ([]byte, error) {
	if s.Version != tls.VersionTLS13 {
		return nil, errors.New("join: not a TLS 1.3 connection")
	}
	channel, err := s.ExportKeyingMaterial("EXPORTER-"+Protocol, nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("join: bind the proof to the connection: %w", err)
	}
	mac := hmac.New(sha256.New, []byte(t.Secret))
	for _, part := range []string{Protocol, from, string(kind), t.ID, string(channel)} {
		_, _ = mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part)))) // a hash does not fail
		_, _ = io.WriteString(mac, part)
	}
	return mac.Sum(nil), nil
}

// ReadRequest reads a machine's question.
func ReadRequest(r io.Reader) (*Request, error) {
	q := &Request{}
	return q, read(r, maxRequest, q)
}

// Write sends an answer.
func (a *Response) Write(w io.Writer) error { return write(w, maxAnswer, a) }

// A message is its length in four bytes, the most significant first, and JSON.
func read(r io.Reader, most uint32, v any) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > most {
		return fmt.Errorf("join: a message of %d bytes, at most %d are taken", n, most)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("join: a message that is not understood: %w", err)
	}
	return nil
}

func write(w io.Writer, most int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("join: encode a message: %w", err)
	}
	if len(data) > most {
		return fmt.Errorf("join: a message of %d bytes, at most %d are taken", len(data), most)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
	return err
}
