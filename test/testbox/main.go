// SPDX-License-Identifier: Apache-2.0

// Command testbox is the one program inside the test image: a small server and a handful of clients that scenarios need
// in a pod. It is never part of a release. It has the standard library alone: it is built on test machines without a
// cache of modules.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	verbs := map[string]func([]string) error{
		"serve": serve, "get": get, "lookup": lookup, "chat": chat, "eat": eat, "hold": hold, "tcp": tcp, "api": api, "echo": echo, "whole": whole, "load": load, "extend": extend, "table": table,
	}
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: testbox serve|get|lookup|chat|eat|hold|tcp|api|echo|whole|load|extend|table ...")
		os.Exit(2)
	}
	if err := verbs[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "testbox:", err)
		os.Exit(1)
	}
}

// serve answers HTTP on the given port (8080): / says the host's name, /healthz fails once /fail was asked,
// /env/NAME, /file/PATH and /peer (the caller's address) say what they are named for.
func serve(args []string) error {
	port := "8080"
	if len(args) > 0 {
		port = args[0]
	}
	host, _ := os.Hostname()
	var failing atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, host) })
	mux.HandleFunc("/env/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, os.Getenv(strings.TrimPrefix(r.URL.Path, "/env/")))
	})
	mux.HandleFunc("/file/", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, strings.TrimPrefix(r.URL.Path, "/file"))
	})
	mux.HandleFunc("/peer", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("/fail", func(w http.ResponseWriter, r *http.Request) { failing.Store(true) })
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		if failing.Load() {
			http.Error(w, "set to fail", http.StatusInternalServerError)
		}
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s := &http.Server{Addr: ":" + port, Handler: mux}
	done := make(chan error, 1) // one send, read at most once
	go func() { done <- s.ListenAndServe() }()
	fmt.Println("serving on", port)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		fmt.Println("asked to stop")
		return s.Shutdown(context.Background())
	}
}

// get prints what URL answers, trying for as many seconds as the second argument says (5).
func get(args []string) error {
	if len(args) == 0 {
		return errors.New("get URL [SECONDS]")
	}
	deadline := time.Now().Add(seconds(args, 1, 5))
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		r, err := client.Get(args[0])
		if err == nil {
			defer r.Body.Close()
			_, err = io.Copy(os.Stdout, r.Body)
			if r.StatusCode >= 400 {
				return fmt.Errorf("%s", r.Status)
			}
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// api prints what the cluster's API answers to a GET of PATH with the pod's own token and CA.
func api(args []string) error {
	if len(args) == 0 {
		return errors.New("api PATH")
	}
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount/"
	ca, err := os.ReadFile(dir + "ca.crt")
	if err != nil {
		return err
	}
	token, err := os.ReadFile(dir + "token")
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	r, err := http.NewRequest(http.MethodGet, "https://kubernetes.default.svc"+args[0], nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+string(token))
	client := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	fmt.Println(answer.StatusCode)
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

// lookup prints the addresses of NAME by the pod's own resolver settings.
func lookup(args []string) error {
	if len(args) == 0 {
		return errors.New("lookup NAME")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addrs, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, args[0])
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(addrs, "\n"))
	return nil
}

// chat writes numbered lines of 100 bytes at BYTES a second (1,000,000) and tells over HTTP on :8080 how many it
// has written: a container whose output blocks stops counting.
func chat(args []string) error {
	rate := 1_000_000
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		rate = n
	}
	var lines atomic.Int64
	go func() {
		err := http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, lines.Load())
		}))
		fmt.Fprintln(os.Stderr, "testbox:", err)
		os.Exit(1)
	}()
	const tick = 20 * time.Millisecond
	perTick := rate / 100 / int(time.Second/tick)
	pad := strings.Repeat("x", 87)
	for range time.Tick(tick) {
		for range perTick {
			if _, err := fmt.Printf("%011d %s\n", lines.Load(), pad); err != nil {
				return err
			}
			lines.Add(1)
		}
	}
	return nil
}

// eat touches MB megabytes of memory and then waits to be ended.
func eat(args []string) error {
	mb := 256
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		mb = n
	}
	var kept [][]byte
	for range mb {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	fmt.Println("ate", len(kept), "MB")
	return hold(nil)
}

// hold waits for SIGTERM and then takes as many seconds as the argument says to leave.
func hold(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	<-ctx.Done()
	fmt.Println("asked to stop")
	time.Sleep(seconds(args, 0, 0))
	fmt.Println("left in peace")
	return nil
}

// tcp listens on PORT and echoes.
func tcp(args []string) error {
	if len(args) == 0 {
		return errors.New("tcp PORT")
	}
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			io.Copy(c, c) //nolint:errcheck // an echo ends when its peer does
		}()
	}
}

func seconds(args []string, i, otherwise int) time.Duration {
	if len(args) > i {
		if n, err := strconv.Atoi(args[i]); err == nil {
			otherwise = n
		}
	}
	return time.Duration(otherwise) * time.Second
}
