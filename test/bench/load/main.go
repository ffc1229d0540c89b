// SPDX-License-Identifier: Apache-2.0

// Command load is the benchmark's client: it speaks plain HTTPS with JSON, the same to every API server, so that what
// differs between two runs is the server. It prints one JSON object.
//
//	load writes -kubeconfig FILE -clients N -seconds S     ConfigMap creates: count, seconds, p50, p99 (milliseconds)
//	load pods   -kubeconfig FILE -count N -parallel P -image IMAGE   create → Running per pod: p50, p99 (milliseconds)
//	load ready  -kubeconfig FILE -seconds S                waits for /readyz, then for a Ready node (milliseconds each)
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return errors.New("usage: load writes|pods|ready ...")
	}
	fs := flag.NewFlagSet("load", flag.ExitOnError)
	kubeconfig := fs.String("kubeconfig", "", "admin kubeconfig")
	clients := fs.Int("clients", 1, "concurrent clients")
	seconds := fs.Int("seconds", 10, "how long")
	count := fs.Int("count", 50, "pods")
	parallel := fs.Int("parallel", 1, "pods at a time")
	image := fs.String("image", "", "an image that is present")
	if err := fs.Parse(os.Args[2:]); err != nil {
		return err
	}
	length := time.Duration(*seconds) * time.Second
	began := time.Now()
	c, err := connect(*kubeconfig, length)
	if err != nil {
		return err
	}
	var result any
	switch os.Args[1] {
	case "writes":
		result, err = writes(c, *clients, length)
	case "pods":
		result, err = pods(c, *count, *parallel, *image)
	case "ready":
		result, err = ready(c, began, length)
	default:
		err = fmt.Errorf("unknown verb %q", os.Args[1])
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// client is an HTTPS client with an admin's certificate.
type client struct {
	http *http.Client
	base string
}

type kubeconfigFile struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CA     string `json:"certificate-authority"`
			CAData string `json:"certificate-authority-data"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			Cert     string `json:"client-certificate"`
			CertData string `json:"client-certificate-data"`
			Key      string `json:"client-key"`
			KeyData  string `json:"client-key-data"`
		} `json:"user"`
	} `json:"users"`
}

// connect reads a kubeconfig, waiting for the file to appear.
func connect(path string, within time.Duration) (*client, error) {
	deadline := time.Now().Add(within)
	for {
		c, err := fromKubeconfig(path)
		if err == nil || time.Now().After(deadline) {
			return c, err
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

func fromKubeconfig(path string) (*client, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var k kubeconfigFile
	if err := yaml.Unmarshal(b, &k); err != nil {
		return nil, err
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return nil, fmt.Errorf("%s: want one cluster and one user", path)
	}
	cluster, user := k.Clusters[0].Cluster, k.Users[0].User
	ca, err := either(cluster.CA, cluster.CAData)
	if err != nil {
		return nil, err
	}
	cert, err := either(user.Cert, user.CertData)
	if err != nil {
		return nil, err
	}
	key, err := either(user.Key, user.KeyData)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	t := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
		ForceAttemptHTTP2: true,
	}
	return &client{http: &http.Client{Transport: t}, base: cluster.Server}, nil
}

func either(file, data string) ([]byte, error) {
	if data != "" {
		return base64.StdEncoding.DecodeString(data)
	}
	return os.ReadFile(file)
}

// do sends a request and decodes the answer into out unless it is nil.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %.200s", method, path, answer.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

type object map[string]any

// Latencies sums up a run.
type Latencies struct {
	Count     int     `json:"count"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"perSecond"`
	P50       float64 `json:"p50ms"`
	P99       float64 `json:"p99ms"`
}

func sumUp(took []time.Duration, all time.Duration) Latencies {
	slices.Sort(took)
	at := func(q float64) float64 {
		if len(took) == 0 {
			return 0
		}
		return float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds()) / 1000
	}
	return Latencies{Count: len(took), Seconds: all.Seconds(), PerSecond: float64(len(took)) / all.Seconds(), P50: at(.5), P99: at(.99)}
}

// writes creates ConfigMaps of about 1 KB from n clients, in a namespace of its own that it deletes afterwards.
func writes(c *client, n int, length time.Duration) (Latencies, error) {
	ctx := context.Background()
	ns := fmt.Sprintf("load-%d", time.Now().UnixNano())
	if err := c.do(ctx, http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": ns}}, nil); err != nil {
		return Latencies{}, err
	}
	pad := strings.Repeat("x", 1000)
	var next atomic.Int64
	var lock sync.Mutex
	var took []time.Duration
	var failed error
	began := time.Now()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for err == nil && time.Since(began) < length {
				t := time.Now()
				name := fmt.Sprintf("c%d", next.Add(1))
				err = c.do(ctx, http.MethodPost, "/api/v1/namespaces/"+ns+"/configmaps",
					object{"metadata": object{"name": name}, "data": object{"pad": pad}}, nil)
				mine = append(mine, time.Since(t))
			}
			lock.Lock()
			defer lock.Unlock()
			took = append(took, mine...)
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	all := time.Since(began)
	return sumUp(took, all), errors.Join(failed, c.remove(ns))
}

// ready waits for /readyz and then for a Ready node.
func ready(c *client, began time.Time, within time.Duration) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	out := map[string]float64{}
	const pause = 20 * time.Millisecond // the answers are work for what is measured
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/readyz", nil)
		if err != nil {
			return nil, err
		}
		if answer, err := c.http.Do(r); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				break
			}
		} else if ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(pause) // between two looks
	}
	out["readyzMs"] = float64(time.Since(began).Milliseconds())
	for {
		var nodes struct {
			Items []struct {
				Status struct {
					Conditions []struct{ Type, Status string }
				}
			}
		}
		if err := c.do(ctx, http.MethodGet, "/api/v1/nodes", nil, &nodes); err != nil && ctx.Err() != nil {
			return nil, err
		}
		for _, n := range nodes.Items {
			for _, cond := range n.Status.Conditions {
				if cond.Type == "Ready" && cond.Status == "True" {
					out["nodeReadyMs"] = float64(time.Since(began).Milliseconds())
					return out, nil
				}
			}
		}
		time.Sleep(pause) // between two looks
	}
}

// pods creates pods and watches each until it is Running; then deletes them all.
func pods(c *client, count, parallel int, image string) (Latencies, error) {
	limited, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	ctx, fail := context.WithCancelCause(limited)
	defer fail(nil)
	ns := fmt.Sprintf("pods-%d", time.Now().UnixNano())
	if err := c.do(ctx, http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": ns}}, nil); err != nil {
		return Latencies{}, err
	}
	if err := c.account(ctx, ns); err != nil {
		return Latencies{}, err
	}
	running, stop, err := c.watchRunning(ctx, ns, fail)
	if err != nil {
		return Latencies{}, err
	}
	defer stop()
	slots := make(chan struct{}, parallel) // as many pods as may start at once
	var lock sync.Mutex
	var took []time.Duration
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	for i := range count {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			name := fmt.Sprintf("p%d", i)
			seen := running.wait(name)
			t := time.Now()
			err := c.do(ctx, http.MethodPost, "/api/v1/namespaces/"+ns+"/pods", object{
				"metadata": object{"name": name},
				"spec": object{"terminationGracePeriodSeconds": 0, "containers": []object{{
					"name": "box", "image": image, "imagePullPolicy": "Never", "command": []string{"testbox", "hold"},
				}}},
			}, nil)
			if err == nil {
				select {
				case <-seen:
				case <-ctx.Done():
					err = fmt.Errorf("pod %s is not Running: %w", name, context.Cause(ctx))
				}
			}
			lock.Lock()
			defer lock.Unlock()
			took = append(took, time.Since(t))
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	all := time.Since(began)
	return sumUp(took, all), errors.Join(failed, c.remove(ns))
}

// remove deletes a namespace and waits until it is gone: clearing up must not count against what is measured next.
func (c *client) remove(ns string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := c.do(ctx, http.MethodDelete, "/api/v1/namespaces/"+ns, nil, nil); err != nil {
		return err
	}
	for {
		err := c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+ns, nil, nil)
		if err != nil && strings.Contains(err.Error(), "404") {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("namespace %s is still there: %w", ns, ctx.Err())
		}
		time.Sleep(100 * time.Millisecond) // between two looks
	}
}

// account waits for the namespace's default ServiceAccount, without which no pod is accepted.
func (c *client) account(ctx context.Context, ns string) error {
	for {
		err := c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+ns+"/serviceaccounts/default", nil, nil)
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// seen tells who waits for a name that it has come.
type seen struct {
	sync.Mutex
	waiting map[string]chan struct{}
}

func (s *seen) wait(name string) <-chan struct{} {
	s.Lock()
	defer s.Unlock()
	ch := make(chan struct{})
	s.waiting[name] = ch
	return ch
}

func (s *seen) notify(name string) {
	s.Lock()
	defer s.Unlock()
	if ch := s.waiting[name]; ch != nil {
		close(ch)
		delete(s.waiting, name)
	}
}

// watchRunning follows the namespace's pods and tells when each is Running. A watch that ends is reported to fail.
func (c *client) watchRunning(ctx context.Context, ns string, fail context.CancelCauseFunc) (*seen, func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/api/v1/namespaces/"+ns+"/pods?watch=1", nil)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	answer, err := c.http.Do(r)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	s := &seen{waiting: map[string]chan struct{}{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer answer.Body.Close()
		lines := bufio.NewReader(answer.Body)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				fail(fmt.Errorf("the watch of pods ended: %w", err))
				return
			}
			var e struct {
				Object struct {
					Metadata struct{ Name string }
					Status   struct{ Phase string }
				}
			}
			if json.Unmarshal(line, &e) == nil && e.Object.Status.Phase == "Running" {
				s.notify(e.Object.Metadata.Name)
			}
		}
	}()
	return s, func() { cancel(); <-done }, nil
}
