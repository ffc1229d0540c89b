// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"crypto/tls"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// handshake connects to a server with a certificate of that authority, name and address, and returns what it showed.
func handshake(t *testing.T, ca *testca.Authority, name, host, offered, caFile, asked string,
	now func() time.Time) (tls.ConnectionState, error) {
	t.Helper()
	files := testenv.Must(ca.Issue(name, host))(t)
	pair := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
	otherConfig := &tls.Config{Certificates: []tls.Certificate{pair}}
	if offered != "" {
		otherConfig.NextProtos = []string{offered}
	}
	config, err := protocol.ServerTLS(caFile, asked, now)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	l := testenv.Must(tls.Listen("tcp", "127.0.0.1:0", otherConfig))(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			_ = c.(*tls.Conn).Handshake() // what the client says counts
			_ = c.Close()
		}
	}()
	defer func() { _ = l.Close(); <-served }()
	c, err := tls.Dial("tcp", l.Addr().String(), config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	return c.ConnectionState(), nil
}

func TestServerCertificateIsVerified(t *testing.T) {
	dir, otherDir := t.TempDir(), t.TempDir()
	ca := testenv.Must(testca.New(dir))(t)
	other := testenv.Must(testca.New(otherDir))(t)
	file := filepath.Join(dir, "ca.crt")
	later := func() time.Time { return time.Now().AddDate(2, 0, 0) }
	for what, tt := range map[string]struct {
		ca               *testca.Authority
		name             string
		offered, wanted  string
		now              func() time.Time
		file, wantsError string
	}{
		"a server":                        {ca, protocol.ServerName, "", "", nil, file, ""},
		"a server with the protocol":      {ca, protocol.ServerName, "p", "p", nil, file, ""},
		"a server that knows no protocol": {ca, protocol.ServerName, "", "p", nil, file, "not the certificate of a server for nodes"},
		"a node":                          {ca, "system:node:n2", "", "", nil, file, "is that of system:node:n2"},
		"another cluster's server":        {other, protocol.ServerName, "", "", nil, file, "it was signed by CN=002, and this machine trusts CN=001"},
		"a certificate that has run out":  {ca, protocol.ServerName, "", "", later, file, "the certificate of CN=001 ended on 20"},
		"an authority that is not there": {ca, protocol.ServerName, "", "", nil, filepath.Join(dir, "none"),
			"reading the cluster's authority"},
		"a file that holds no certificates": {ca, protocol.ServerName, "", "", nil, filepath.Join(dir, protocol.ServerName+".key"),
			"reading the cluster's authority"},
	} {
		_, err := handshake(t, tt.ca, tt.name, "192.0.2.7", tt.offered, tt.file, tt.wanted, tt.now)
		if tt.wantsError == "" && err != nil || tt.wantsError != "" && (err == nil || !strings.Contains(err.Error(), tt.wantsError)) {
			t.Errorf("%s: %v, want %q", what, err, tt.wantsError)
		}
	}
}

func TestServerCertificateNamesItsAddress(t *testing.T) {
	dir := t.TempDir()
	ca := testenv.Must(testca.New(dir))(t)
	s := testenv.Must(handshake(t, ca, protocol.ServerName, "192.0.2.7", "", filepath.Join(dir, "ca.crt"), "", nil))(t)
	for address, want := range map[string]bool{"192.0.2.7:6443": true, "192.0.2.8:6443": false, "192.0.2.7": false, "": false} {
		testenv.Equal(t, protocol.NamesAddress(s, address), want, "%q:", address)
	}
}
