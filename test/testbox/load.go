// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// account is what has become of the requests to one target.
type account struct {
	Target       string
	Done, Failed int
	Longest      time.Duration  // between two that were done, and since the last one
	Errors       map[string]int // how often each was; the first few kinds

	mu   sync.Mutex
	last time.Time
}

// pace is how long after one request the next one begins, where that was answered sooner: the processors are for what
// is tested.
const pace = 50 * time.Millisecond

// load asks each TARGET again and again, and gives a request up after as long as PATIENCE says. It answers at PORT with
// its accounts, a line of JSON each; asked for /end it ends. Targets are http://… (a connection for each request),
// keep+http://… (connections are kept and used again), tcp://HOST:PORT (one long connection to an echo, with 16 KiB
// each time; only the kernel gives up opening it, or waiting on it), and name:NAME (a lookup; a * in it is another word
// each time).
func load(args []string) error {
	if len(args) < 3 {
		return errors.New("load PORT PATIENCE TARGET...")
	}
	patience, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	var accounts []*account
	for _, target := range args[2:] {
		ask, err := asker(target, patience)
		if err != nil {
			return err
		}
		a := &account{Target: target, last: time.Now(), Errors: map[string]int{}}
		accounts = append(accounts, a)
		go a.keep(ask)
	}
	return http.ListenAndServe(":"+args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, a := range accounts {
			_, _ = w.Write(a.line())
		}
		if r.URL.Path == "/end" {
			_ = http.NewResponseController(w).Flush()
			time.AfterFunc(time.Second, func() { os.Exit(0) }) // once the answer is on its way
		}
	}))
}

func (a *account) keep(ask func() error) {
	for {
		began := time.Now()
		err := ask()
		a.note(err)
		time.Sleep(time.Until(began.Add(pace)))
	}
}

func (a *account) note(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if err != nil {
		a.Failed++
		if text := err.Error(); a.Errors[text] > 0 || len(a.Errors) < 5 {
			a.Errors[text]++
		}
		return
	}
	a.Done++
	a.Longest = max(a.Longest, now.Sub(a.last))
	a.last = now
}

func (a *account) line() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Longest = max(a.Longest, time.Since(a.last))
	text, _ := json.Marshal(a) // there is nothing in it that could fail
	return append(text, '\n')
}

func asker(target string, patience time.Duration) (func() error, error) {
	kind, rest, _ := strings.Cut(target, ":")
	switch kind {
	case "http":
		return page(target, &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}), nil
	case "keep+http":
		return page("http:"+rest, &http.Client{Timeout: patience, Transport: &http.Transport{}}), nil
	case "tcp":
		return talk(strings.TrimPrefix(rest, "//")), nil
	case "name":
		return name(rest, patience), nil
	}
	return nil, fmt.Errorf("%q is nothing to ask", target)
}

func page(url string, client *http.Client) func() error {
	return func() error {
		r, err := client.Get(url)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return err
		}
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
		return nil
	}
}

// talk has one connection, and another one only once that has failed. It opens one without a time limit of its own: a
// lost SYN is sent again after a second.
func talk(address string) func() error {
	var c net.Conn
	piece, echo := make([]byte, 16<<10), make([]byte, 16<<10)
	n := byte(0)
	try := func() error {
		if c == nil {
			opened, err := net.Dial("tcp", address)
			if err != nil {
				return err
			}
			c = opened
		}
		n++
		for i := range piece {
			piece[i] = n + byte(i)
		}
		if _, err := c.Write(piece); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, echo); err != nil {
			return err
		}
		if !bytes.Equal(piece, echo) {
			return errors.New("other bytes came back")
		}
		return nil
	}
	return func() error {
		err := try()
		if err != nil && c != nil {
			c.Close()
			c = nil
		}
		return err
	}
}

// name is looked up by the pod's own resolver settings.
func name(pattern string, patience time.Duration) func() error {
	n := 0
	return func() error {
		n++
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, strings.ReplaceAll(pattern, "*", fmt.Sprint("x", n)))
		return err
	}
}
