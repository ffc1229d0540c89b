// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// attemptPatience is for a connection of which nothing is heard: what is refused is refused by an answer.
const attemptPatience = 5 * time.Second

// table echoes by TCP and UDP at each PORT, and makes connections for who asks by HTTP at :7000: the body of a POST has
// one on each line, such as "tcp 10.42.1.5:80", and the answer a line for each: open, refused, or what went wrong.
func table(args []string) error {
	if len(args) == 0 {
		return errors.New("table PORT...")
	}
	for _, port := range args {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		p, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go echoStreams(l)
		go echoDatagrams(p)
	}
	return http.ListenAndServe(":7000", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answers := strings.Split(strings.TrimSpace(string(body)), "\n") // each in the place of its question
		var all sync.WaitGroup
		several := make(chan struct{}, 8) // as many connections at a time
		for i, line := range answers {
			several <- struct{}{}
			all.Go(func() {
				defer func() { <-several }()
				network, address, _ := strings.Cut(line, " ")
				answers[i] = attempt(network, address)
			})
		}
		all.Wait()
		fmt.Fprintln(w, strings.Join(answers, "\n"))
	}))
}

func echoStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c) //nolint:errcheck // an echo ends when its peer does
		}()
	}
}

func echoDatagrams(p net.PacketConn) {
	b := make([]byte, 100)
	for {
		n, from, err := p.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = p.WriteTo(b[:n], from)
		}
	}
}

// attempt makes a connection and waits for something to come back. Datagrams may be lost, and refusals of them.
func attempt(network, address string) string {
	deadline := time.Now().Add(attemptPatience)
	c, err := net.DialTimeout(network, address, attemptPatience)
	if err != nil {
		return outcome(err)
	}
	defer c.Close()
	b := make([]byte, 1)
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return outcome(err)
		}
		next := deadline
		if network == "udp" {
			next = time.Now().Add(200 * time.Millisecond)
		}
		_ = c.SetReadDeadline(next)
		_, err := c.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline) {
			return outcome(err)
		}
	}
}

// outcome turns the kernel's several words for a refusal into one.
func outcome(err error) string {
	if err == nil {
		return "open"
	}
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.EACCES, syscall.ECONNRESET, syscall.EPIPE, io.EOF} {
		if errors.Is(err, e) {
			return "refused"
		}
	}
	return strings.ReplaceAll(err.Error(), "\n", " ")
}
