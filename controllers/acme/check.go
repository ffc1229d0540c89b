// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// askTimeout limits the time for checking all hosts at one node. parallelNodes is how many nodes are checked at a
	// time.
	askTimeout, parallelNodes = 10 * time.Second, 16
	// receiveTimeout is the time that nodes may take to receive a new host. askInterval is the interval of the checks.
	receiveTimeout, askInterval = 20 * time.Second, 500 * time.Millisecond
	// clockTolerance is the greatest accepted difference between this server's clock and the authority's.
	clockTolerance = time.Hour
)

// nodesError says which node does not answer challenges.
type nodesError struct{ cause error }

func (e *nodesError) Error() string {
	return fmt.Sprintf("not all nodes answer challenges yet, of which the authority may ask any: %v", e.cause)
}
func (e *nodesError) Unwrap() error { return e.cause }

// checkNodes waits until all nodes that serve Ingresses answer challenges for all hosts, since the authority may ask
// any of them. An order thus does not begin before it can succeed. The check uses a token of its own: the response
// follows from the token and the account alone.
func (m *Manager) checkNodes(ctx context.Context, hosts []string, thumbprint string) error {
	deadline := time.Now().Add(receiveTimeout)
	for {
		err := m.askNodes(ctx, hosts, thumbprint)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Now().After(deadline) {
			return &nodesError{err}
		}
		if !timers.Sleep(ctx, askInterval) {
			return ctx.Err()
		}
	}
}

// askNodes checks each node once. It returns one of the failures.
func (m *Manager) askNodes(ctx context.Context, hosts []string, thumbprint string) error {
	nodes, err := m.nodes()
	if err != nil {
		return err
	}
	token := "check-" + rand.Text()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs = map[string]error{}
		turn = make(chan struct{}, parallelNodes) // one slot for each node that is checked at a time
	)
	for name, at := range nodes {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			if err := m.ask(ctx, at, hosts, token, token+"."+thumbprint); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs[name] = fmt.Errorf("the node %s at %s: %w", name, at, err)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		return err
	}
	return nil
}

// nodes returns the addresses at which ready nodes serve HTTP, by the nodes' names.
func (m *Manager) nodes() (map[string]string, error) {
	all, err := m.o.Slices.EndpointSlices(metav1.NamespaceSystem).List(
		labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: table.Service}))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, s := range all {
		for _, p := range s.Ports {
			if p.Name == nil || *p.Name != table.HTTP || p.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				if e.NodeName != nil && len(e.Addresses) > 0 && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					out[*e.NodeName] = net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port)))
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, errNoNode
	}
	return out, nil
}

// ask checks the responses of one node's proxy for all hosts, over one connection.
func (m *Manager) ask(ctx context.Context, address string, hosts []string, token, want string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := m.o.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	in := bufio.NewReader(conn)
	for _, host := range hosts {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+table.ChallengesPath+token, nil)
		if err != nil {
			return err
		}
		if err := req.Write(conn); err != nil {
			return err
		}
		res, err := http.ReadResponse(in, req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(res.Body, int64(len(want)+1)))
		switch {
		case err != nil:
			return err
		case res.StatusCode != http.StatusOK:
			return fmt.Errorf("it answers %s for %s", res.Status, host)
		case string(text) != want:
			return fmt.Errorf("it answers with something else than this account's answer for %s", host)
		}
	}
	return nil
}

// clockError says that this server's clock is wrong.
type clockError struct {
	clock  time.Time
	reason string
}

func (e *clockError) Error() string {
	return fmt.Sprintf("this server's clock shows %s, and %s: nothing is ordered or renewed before it is set (NTP)",
		e.clock.UTC().Format(time.RFC3339), e.reason)
}

// checkClock compares this server's clock with the authority's, since the time of renewals depends on it.
func (m *Manager) checkClock(ctx context.Context) error {
	now := time.Now()
	if now.Before(m.o.Built) {
		return &clockError{now, "this program was built at " + m.o.Built.UTC().Format(time.RFC3339)}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.o.Directory, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", m.o.UserAgent)
	res, err := m.http.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20)) // so that the connection can be used again
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return fmt.Errorf("reading %s: %w", m.o.Directory, err)
	}
	serverTime, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return nil // an authority need not send the time
	}
	if off := now.Sub(serverTime); off.Abs() > clockTolerance {
		return &clockError{now, "the authority's " + serverTime.UTC().Format(time.RFC3339)}
	}
	return nil
}
