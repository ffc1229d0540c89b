//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestForeignClientsLeaveFewLines: a machine without credentials connects to each TCP port of a server with a node, and
// sends what is no request, wrong requests, wrong tokens and wrong HTTP/2, over TLS with each protocol of ours and
// without. Of thousands of connections and requests the log gets few lines.
func TestForeignClientsLeaveFewLines(t *testing.T) {
	site := harness.NewSite(t)
	m := site.NewMachine()
	s := m.NewServer("--console-listen", net.JoinHostPort(m.IP, consolePort))
	s.StartNode()
	s.InsistsOn(webIngress)
	foreign := site.NewMachine()
	ports := []string{"80", "443"} // the ingress'
	for _, port := range ports {
		harness.Eventually(t, soon, "the ingress listens at port "+port, func() error {
			c, err := foreign.Dial(t.Context(), "tcp", net.JoinHostPort(s.IP, port))
			if err == nil {
				err = c.Close()
			}
			return err
		})
	}
	for _, at := range s.Listeners() {
		address, number, _ := strings.Cut(at, ":")
		port := testenv.Must(strconv.ParseUint(number, 16, 16))(t)
		if text := strconv.FormatUint(port, 10); !strings.HasSuffix(address, "7F") && !slices.Contains(ports, text) {
			ports = append(ports, text)
		}
	}
	for _, known := range []string{"6443", "10250", "10053", consolePort} {
		testenv.True(t, slices.Contains(ports, known), "port %s is not among the listeners: %v", known, ports)
	}
	before := len(testenv.Must(os.ReadFile(s.Log))(t))

	protocols := []string{"", "h2", "http/1.1", "coracle-peer/1", "coracle-join/1", "coracle-node/1", "coracle-liveness/1", "coracle-gossip/1"}
	var all sync.WaitGroup
	jobs := make(chan func())
	for range 32 {
		all.Go(func() {
			for job := range jobs {
				job()
			}
		})
	}
	connections, requests := 0, 0
	for _, port := range ports {
		at := net.JoinHostPort(s.IP, port)
		if !connects(foreign, at) {
			t.Logf("port %s is closed to other machines", port)
			continue
		}
		for range 10 {
			jobs <- func() { sendForeign(foreign, at, "", false, []byte("\x16\x03\x01\x02\x00no handshake")) }
			jobs <- func() { sendForeign(foreign, at, "", false, wrongRequests(10)) }
			for _, p := range protocols {
				jobs <- func() { sendForeign(foreign, at, p, true, bytes.Repeat([]byte("\xff\x00no message"), 100)) }
			}
			jobs <- func() { sendForeign(foreign, at, "http/1.1", true, wrongRequests(10)) }
			jobs <- func() { sendForeign(foreign, at, "h2", true, goAways(100)) }
			connections += 4 + len(protocols)
			requests += 10 + 10 + 100
		}
	}
	close(jobs)
	all.Wait()
	text := string(testenv.Must(os.ReadFile(s.Log))(t)[before:])
	lines := strings.Count(text, "\n")
	t.Logf("%d connections, %d requests and frames: %d lines, %d bytes:\n%s", connections, requests, lines, len(text), text)
	testenv.True(t, lines < 60 && len(text) < 16<<10, "%d lines, %d bytes", lines, len(text))
}

// connects says whether a machine can connect to an address.
func connects(from *harness.Machine, at string) bool {
	ctx, cancel := context.WithTimeout(from.Site.T.Context(), 3*time.Second) // packets to a closed port are dropped
	defer cancel()
	c, err := from.Dial(ctx, "tcp", at)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// sendForeign connects to an address, with TLS or without, sends something and waits for the end or for a moment. What
// does not accept it is right, so errors do not count.
func sendForeign(from *harness.Machine, at, protocol string, withTLS bool, data []byte) {
	ctx, cancel := context.WithTimeout(from.Site.T.Context(), 10*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", at)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second)) // what is not refused stays open
	if withTLS {
		config := &tls.Config{InsecureSkipVerify: true}
		if protocol != "" {
			config.NextProtos = []string{protocol}
		}
		secure := tls.Client(c, config)
		if secure.HandshakeContext(ctx) != nil {
			return
		}
		c = secure
	}
	go func() { _, _ = c.Write(data) }() // a server may reply before it has read all
	_, _ = io.Copy(io.Discard, c)
}

// wrongRequests returns requests on one connection: wrong time limits, selectors, paths and tokens.
func wrongRequests(n int) []byte {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	for i := range n {
		path := []string{"/readyz?timeout=9x", "/api/v1/pods?watch=1&fieldSelector=!!!", "/api/v1/watch", "/pods", "/" + strings.Repeat("7", 3000)}[i%5]
		fmt.Fprintf(w, "GET %s HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer wrong\r\n\r\n", path)
	}
	_ = w.Flush() // a Buffer accepts all
	return b.Bytes()
}

// goAways returns the start of HTTP/2 and a number of frames GOAWAY with an error.
func goAways(n int) []byte {
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&b, nil)
	_ = framer.WriteSettings() // a Buffer accepts all
	for range n {
		_ = framer.WriteGoAway(0, http2.ErrCodeProtocol, binary.BigEndian.AppendUint32(nil, 0))
	}
	return b.Bytes()
}
