// SPDX-License-Identifier: Apache-2.0

// Package protocol is the protocol with which a machine joins the cluster: one request and one response over one TLS
// 1.3 connection. The cluster's port recognises the connection by its ALPN name.
//
//	machine                                     server
//	  | -- ClientHello, ALPN coracle-join/1 ----> |
//	  | <-- certificate chain up to the root ---- |   the machine compares the root with the token's hash: a stranger
//	  |                                           |   in between learns nothing. If the root was renewed with its key,
//	  |                                           |   the first root follows it, which tokens name for good
//	  | -- Request, proof of the token ---------> |   a key is made on the machine and never leaves it: the server
//	  | <-- Answer, proof of the token ---------- |   only signs
//
// A proof is an HMAC under the token's secret of a value that only this TLS connection has (RFC 9266). So the secret
// itself is never sent, an intercepted proof cannot be used elsewhere, and a server that cannot make one is not the
// cluster's. A machine that has joined before has no token: it presents its node's certificate in the TLS handshake.
//
// The package has both ends of the protocol. joining/server decides which machines may join, server/admission what they
// are given, and joining/node where credentials are stored.
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
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/token"
)

const (
	// Protocol is the ALPN protocol of connections on which a machine joins.
	Protocol = "coracle-join/1"
	// ServerName is the common name of the server's certificate. Nodes' certificates are of the same authority, with
	// the node's name as their common name.
	ServerName = "kube-apiserver"

	// maxRequest and maxAnswer limit what is read from the other end, in bytes.
	maxRequest = 64 << 10
	maxAnswer  = 1 << 20
	// Timeout limits a whole exchange.
	Timeout = 30 * time.Second
)

// Request is what a machine sends to join, or to get a part of the response again.
type Request struct {
	// Role is the requested role. token.RoleAgent is a node without a server.
	Role token.Role `json:"role"`
	// Want is empty for a machine that joins. Otherwise it names the section of a response that a joined node requests
	// alone.
	Want string `json:"want,omitempty"`
	// Program is the version of the machine's program, for the log.
	Program string `json:"program"`
	// Protocol is version.Protocol of the program. Versions before the second do not send it. Send fills it in.
	Protocol int `json:"protocol,omitempty"`
	// Level is the newest level that the program knows. It is 0 for the first one. Send fills it in.
	Level int `json:"level,omitempty"`
	// Time is the machine's clock.
	Time  time.Time `json:"time"`
	Proof Proof     `json:"proof"`
	// Node describes the machine as a node. A server makes its own credentials: for it only name and addresses matter,
	// and the name is empty if it has no node.
	Node Node `json:"node"`
	// Reach only asks whether a server is reached at an address. It requires the server token.
	Reach *Reach `json:"reach,omitempty"`
}

// Reach is the address at which a server expects that the others reach it.
type Reach struct {
	Address  string `json:"address"` // host:port
	ServerID string `json:"serverID"`
}

// WantGossipKeys requests only the gossip keys, by a node that presents its certificate.
const WantGossipKeys = "gossip-keys"

// Proof proves that the machine knows a token.
type Proof struct {
	// Kind is the token's role. Empty means the certificate of the TLS handshake.
	Kind token.Role `json:"kind,omitempty"`
	// ID is the public part of a bootstrap token. It is empty for other tokens.
	ID string `json:"id,omitempty"`
	// MAC is computed with the token's secret.
	MAC []byte `json:"mac,omitempty"`
}

// Node is the name, addresses and certificate requests of a machine that becomes a node.
type Node struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	// External are further addresses at which the node is reached from outside its network.
	External []netip.Addr `json:"external,omitempty"`
	// Password is a secret that the machine made when it first joined: its holder is the node of that name.
	Password string `json:"password"`
	// The certificate requests are PKCS #10 in DER. Only their public keys are used.
	KubeletRequest []byte `json:"kubeletRequest"`
	ServingRequest []byte `json:"servingRequest"`
	NetworkRequest []byte `json:"networkRequest"`
}

// Response is either a refusal or what the machine needs.
type Response struct {
	Refusal *Refusal `json:"refusal,omitempty"`
	// MAC proves that the server knows the token: without that the rest must not be trusted.
	MAC []byte `json:"mac,omitempty"`

	// Level is the cluster's level. It is 0 for the first one, and from an earlier version.
	Level    int                    `json:"level,omitempty"`
	Settings clusterconfig.Settings `json:"settings,omitzero"`
	// ServerCA and ClientCA are PEM, and so are the certificates, each with its chain.
	ServerCA []byte `json:"serverCA,omitempty"`
	ClientCA []byte `json:"clientCA,omitempty"`
	Kubelet  []byte `json:"kubelet,omitempty"`
	Serving  []byte `json:"serving,omitempty"`
	Network  []byte `json:"network,omitempty"`

	// Gossip are the keys of the gossip. It is nil from a server that has none yet, or is of an earlier version.
	Gossip *clusterconfig.GossipKeys `json:"gossip,omitempty"`

	// Server is set only for a machine that becomes a server.
	Server *Server `json:"server,omitempty"`
}

// Server has the secrets that make a machine a server of the cluster. It is sent only after a proof of the server
// token.
type Server struct {
	// Files are the contents of the files that all servers share, by their path below the server's folder: authorities
	// with their keys, the key of ServiceAccount tokens, encryption keys, join tokens.
	Files map[string][]byte `json:"files"`
	// Peers are the Raft addresses of the cluster's servers.
	Peers []string `json:"peers"`
	clusterconfig.ServerSettings
	// Flags are flags that each server is given, and that have to be the same on all. It is nil from an earlier
	// version.
	Flags map[string]string `json:"flags,omitempty"`
}

// Code is the reason for a refusal, which the machine that asked acts on.
type Code string

// The codes. The reasons for which Passing is true end by themselves.
const (
	CodeToken       Code = "token"       // wrong, expired, or for another purpose
	CodeCertificate Code = "certificate" // the node's certificate is not accepted; a token would be
	CodeClock       Code = "clock"
	CodeVersion     Code = "version" // too old or too new for the cluster
	CodeName        Code = "name"
	CodeAddress     Code = "address"
	CodeRequest     Code = "request" // not understood
	CodeStarting    Code = "starting"
	CodeBusy        Code = "busy"
	CodeInternal    Code = "internal"
)

// Refusal is a server's refusal. It is an error on both ends.
type Refusal struct {
	Code Code `json:"code"`
	// Message is for the user at the joining machine.
	Message string `json:"message"`
}

func (r *Refusal) Error() string { return r.Message }

// Passing reports whether the same request may be accepted later.
func (r *Refusal) Passing() bool {
	return r.Code == CodeStarting || r.Code == CodeBusy || r.Code == CodeInternal
}

// Refuse returns a refusal whose message is formatted as by fmt.Sprintf.
func Refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// The two ends of a proof. They differ, so that one end's proof cannot be sent back as the other's.
const (
	fromMachine = "machine"
	fromServer  = "server"
)

// MachineProof returns the proof with which a machine proves on a connection that it knows t.
func MachineProof(s tls.ConnectionState, t token.Token, kind token.Role) (Proof, error) {
	mac, err := proof(s, fromMachine, kind, t)
	return Proof{Kind: kind, ID: t.ID, MAC: mac}, err
}

// Verify reports whether the machine at the other end knows t.
func (p Proof) Verify(s tls.ConnectionState, t token.Token) bool {
	want, err := proof(s, fromMachine, p.Kind, t)
	return err == nil && hmac.Equal(want, p.MAC)
}

// ServerProof returns the proof with which a server proves on a connection that it knows t.
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

// CheckLevel returns a refusal if this program cannot run in the cluster of a response.
func (a *Response) CheckLevel() error {
	cluster := max(a.Level, level.First)
	if level.Known(cluster) {
		return nil
	}
	what := "Install the version that the servers run"
	if cluster < level.Oldest() {
		what += ", or raise the cluster's level first: `coracle upgrade raise` on a server"
	}
	return Refuse(CodeVersion, "the cluster has level %d, and this coracle, %s, knows the levels %d to %d. Nothing was changed on this "+
		"machine. %s", cluster, version.Get().Coracle, level.Oldest(), level.Newest(), what)
}

// ReadRequest reads the one request of a connection. It refuses a longer one than maxRequest.
func ReadRequest(r io.Reader) (*Request, error) {
	q := &Request{}
	return q, read(r, maxRequest, q)
}

// Write sends the response to the machine.
func (a *Response) Write(w io.Writer) error { return write(w, maxAnswer, a) }

// read reads a message: its length in four bytes, the most significant first, and JSON.
func read(r io.Reader, most uint32, v any) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > most {
		return fmt.Errorf("join: a message of %d bytes is too long: at most %d are accepted", n, most)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("join: a malformed message: %w", err)
	}
	return nil
}

func write(w io.Writer, most int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("join: encode a message: %w", err)
	}
	if len(data) > most {
		return fmt.Errorf("join: a message of %d bytes is too long: at most %d are accepted", len(data), most)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
	return err
}
