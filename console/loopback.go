// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

const (
	// codeLifetime is the lifetime of a one-time code.
	codeLifetime = time.Minute
	// idlePoll is the interval of checks whether the console is unused.
	idlePoll = 10 * time.Second
	// stopTimeout limits the wait for requests when the console ends.
	stopTimeout = 3 * time.Second
)

// LoopbackOptions are the options of a console on 127.0.0.1.
type LoopbackOptions struct {
	Contexts Contexts
	Port     int // 0 for any free port
	ReadOnly bool
	Program  string // the path of coracle, which is Helm in a child process
	// Idle ends the console after this time without use. 0 is for never.
	Idle time.Duration

	files fs.FS // the pages, except in tests
}

// Loopback is the console of one user on a port of 127.0.0.1. Other users of the machine can connect to the port, too.
// A browser therefore logs in with a one-time code that only this user sees, and that is valid for a minute.
type Loopback struct {
	o        LoopbackOptions
	listener net.Listener
	front    *Handler // serves the pages and the login, and knows no user
	token    string   // 256 bits; a browser gets it for its code
	names    map[string]bool
	forwards forwards // of all contexts

	mu      sync.Mutex
	code    string    // "" when it was taken
	expires time.Time // when the code stops being good
	opened  map[string]*openContext
	closed  bool // no context can be opened any more
}

// ListenLoopback opens the port.
func ListenLoopback(ctx context.Context, o LoopbackOptions) (*Loopback, error) {
	if !Built() {
		return nil, errNoPages
	}
	l, err := newLoopback(o)
	if err != nil {
		return nil, err
	}
	l.listener, err = listenBesideForwards(o.Port, func() (net.Listener, error) {
		var lc net.ListenConfig
		return lc.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port)))
	})
	if err != nil {
		return nil, fmt.Errorf("opening a port for the browser (--port names another): %w", err)
	}
	return l, nil
}

// newLoopback makes a console that has no port yet.
func newLoopback(o LoopbackOptions) (*Loopback, error) {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	l := &Loopback{o: o, token: hex.EncodeToString(key[:]), names: map[string]bool{}, opened: map[string]*openContext{}}
	for _, name := range o.Contexts.Names {
		l.names[name] = true
	}
	var err error
	l.front, err = New(Options{
		Mode: ModeLoopback, Login: l.login, User: func(string) (*rest.Config, bool) { return nil, false }, Hosts: loopbackName,
		Files: o.files,
	})
	return l, err
}

// listenBesideForwards opens a port outside of the range of the forwards' ports (firstForwardPort), unless the user
// chose a port.
func listenBesideForwards(chosen int, open func() (net.Listener, error)) (net.Listener, error) {
	for {
		l, err := open()
		if err != nil {
			return nil, err
		}
		if address, _ := l.Addr().(*net.TCPAddr); chosen != 0 || !isForwardPort(address.Port) {
			return l, nil
		}
		defer l.Close() // not before another port is found
	}
}

// loopbackName reports whether a name in the Host header is a loopback name of this machine.
func loopbackName(name string) bool { return name == "127.0.0.1" || name == "localhost" }

// Port returns the port of the console.
func (l *Loopback) Port() int {
	address, _ := l.listener.Addr().(*net.TCPAddr)
	return address.Port
}

// Link makes a new code, and returns a URL that logs a browser in with it. An earlier code becomes invalid.
func (l *Loopback) Link() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.code, l.expires = rand.Text(), time.Now().Add(codeLifetime)
	return fmt.Sprintf("http://127.0.0.1:%d/#code=%s", l.Port(), l.code)
}

func (l *Loopback) login(code string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.code == "" || subtle.ConstantTimeCompare([]byte(code), []byte(l.code)) != 1 {
		return "", errors.New("this link was used already, or is not of this console: press Enter where coracle console runs for a new one")
	}
	l.code = ""
	if time.Now().After(l.expires) {
		return "", errors.New("this link was good for a minute: press Enter where coracle console runs for a new one")
	}
	return l.token, nil
}

// knows reports whether a token is the session's.
func (l *Loopback) knows(token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), []byte(l.token)) == 1
}

// ErrIdle is the error of a console that ended because it was unused.
var ErrIdle = errors.New("the console was not used")

// Serve serves the console until ctx is done, or until it was unused for LoopbackOptions.Idle (ErrIdle).
func (l *Loopback) Serve(ctx context.Context) error {
	server := &http.Server{Handler: l, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l.listener) }()
	tick := time.NewTicker(idlePoll)
	defer tick.Stop()
	var err error
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case err = <-ended:
			return fmt.Errorf("serving the browser: %w", err)
		case <-tick.C:
			if l.o.Idle > 0 && l.unused() > l.o.Idle {
				err, running = ErrIdle, false
			}
		}
	}
	l.closeAll()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if server.Shutdown(stopping) != nil {
		_ = server.Close() // a request that did not end in time
	}
	if stopped := <-ended; !errors.Is(stopped, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serving the browser: %w", stopped))
	}
	return err
}
