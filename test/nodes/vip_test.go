//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const testVIP = "10.77.0.100"

// caOf is the authority in a kubeconfig.
func caOf(t *testing.T, s *harness.Server) *x509.CertPool {
	t.Helper()
	data := testenv.Must(os.ReadFile(s.Kubeconfig))(t)
	found := regexp.MustCompile(`certificate-authority-data: "?([A-Za-z0-9+/=]+)`).FindSubmatch(data)
	testenv.Require(t, found != nil, "no authority in %s", data)
	pem, err := base64.StdEncoding.DecodeString(string(found[1]))
	pool := x509.NewCertPool()
	testenv.Require(t, err == nil && pool.AppendCertsFromPEM(pem), "the authority: %v", err)
	return pool
}

// healthy asks the API server at an address how it is, over a new connection from outside of the machines.
func healthy(site *harness.Site, ca *x509.CertPool, address string) error {
	return site.Do(func() error {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		raw, err := dialer.Dial("tcp", net.JoinHostPort(address, "6443")) // on this thread, and so in the site's network
		if err != nil {
			return err
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(10 * time.Second)) // a handshake takes a busy machine a while
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c := tls.Client(raw, &tls.Config{RootCAs: ca, ServerName: address})
			return c, c.HandshakeContext(ctx)
		}}}
		answer, err := client.Get("https://" + net.JoinHostPort(address, "6443") + "/livez")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return errors.New(answer.Status)
		}
		return nil
	})
}

// vipCluster is three servers with a virtual address, and a machine that is none.
type vipCluster struct {
	*testing.T
	site    *harness.Site
	servers []*harness.Server
	client  *harness.Machine
	ca      *x509.CertPool
}

func newVIPCluster(t *testing.T) *vipCluster {
	t.Helper()
	c := &vipCluster{T: t, site: harness.NewSite(t)}
	first := c.site.NewMachine().NewServer("--disable-agent", "--vip", testVIP)
	first.StartAPI()
	c.servers = append(c.servers, first)
	for range 2 {
		s := c.site.NewMachine().NewPeer(first, "--disable-agent")
		s.StartAPI()
		c.servers = append(c.servers, s)
	}
	c.client, c.ca = c.site.NewMachine(), caOf(t, first)
	c.whole()
	return c
}

// whole waits until all servers vote and answer.
func (c *vipCluster) whole() {
	c.Helper()
	for _, s := range c.servers {
		s.WaitAPI()
	}
	c.servers[0].Members(0, "any one server")
	harness.Eventually(c.T, harness.Soon, "the address answers", func() error { return healthy(c.site, c.ca, testVIP) })
}

func (c *vipCluster) by(machine int) *harness.Server {
	i := slices.IndexFunc(c.servers, func(s *harness.Server) bool { return s.Number == machine })
	testenv.Require(c, i >= 0, "machine %d is no server", machine)
	return c.servers[i]
}

// TestVIPLeadsToOneLiveServer: the cluster's address leads to one live server, whatever happens to the one that has it,
// and never do two answer for it. At last the cluster gets another one, and then none.
func TestVIPLeadsToOneLiveServer(t *testing.T) {
	harness.ByHand(t)
	c := newVIPCluster(t)
	w := watchAnswers(t, c.site, testVIP)
	kubectl := func(args ...string) (string, error) { // from the machine that is no server, through the address
		args = append([]string{"kubectl", "--kubeconfig", c.servers[0].Kubeconfig, "--request-timeout", "20s"}, args...)
		return c.client.Run(c.client.Coracle(), args...)
	}
	testenv.Contains(t, string(testenv.Must(os.ReadFile(c.servers[0].Kubeconfig))(t)), "https://"+testVIP+":6443", "the kubeconfig does not name the address:")
	harness.Eventually(t, harness.Soon, "a write through the address", func() error { // as Creates
		_, err := kubectl("create", "configmap", "through-the-address")
		if err != nil && strings.Contains(err.Error(), "already exists") {
			err = nil
		}
		return err
	})
	if out, err := c.servers[1].Run(c.servers[1].Coracle(), "token", "print", "--data-dir", c.servers[1].DataDir); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	testenv.Until(t, harness.Soon, "a machine answers for the address", func() bool {
		runs, _, _ := w.state()
		return len(runs) != 0
	})
	for _, s := range c.servers {
		harness.Eventually(t, harness.Soon, fmt.Sprintf("machine %d reaches the address", s.Number), func() error {
			_, err := s.TryKubectl("get", "configmap", "through-the-address")
			return err
		})
		if out, err := s.Run("ip", "-o", "address"); err != nil || strings.Contains(out, testVIP) {
			t.Errorf("machine %d has the address on an interface: %v\n%s", s.Number, err, out)
		}
		harness.Eventually(t, harness.Soon, fmt.Sprintf("machine %d knows who answers for the address", s.Number), func() error {
			out, _ := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir) // its code says whether all is well, and that is not asked here
			if !regexp.MustCompile(`virtual address .*` + testVIP + `: (announced by this server|\S+ answers for it)`).MatchString(out) {
				return fmt.Errorf("nothing on it in:\n%s", out)
			}
			return nil
		})
	}

	for _, fault := range []struct {
		name     string
		do, undo func(*harness.Server)
	}{
		{name: "killed", do: (*harness.Server).Kill, undo: (*harness.Server).Start},
		{name: "paused", do: (*harness.Server).Pause, undo: (*harness.Server).Resume},
		{name: "cut off", do: func(s *harness.Server) {
			for _, o := range c.servers {
				if o != s {
					c.site.Split(s.Machine, o.Machine)
				}
			}
		}, undo: func(*harness.Server) { c.site.Heal() }},
		{name: "stopped", do: func(s *harness.Server) {
			testenv.Check(t, s.Stop())
		}, undo: (*harness.Server).Start},
	} {
		before, _, _ := w.state()
		holder := before[len(before)-1]
		const begins = "this server announces a virtual address"
		elected := c.by(holder).InLog(begins)
		began := time.Now()
		moved := make(chan time.Duration, 1) // one: it is sent once
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for time.Since(began) < harness.Soon {
				if runs, _, _ := w.state(); runs[len(runs)-1] != holder && healthy(c.site, c.ca, testVIP) == nil {
					moved <- time.Since(began)
					return
				}
				time.Sleep(10 * time.Millisecond) // between two looks
			}
		}()
		fault.do(c.by(holder))
		<-ended
		select {
		case took := <-moved:
			t.Logf("%s: another server answers at the address after %v", fault.name, took.Round(10*time.Millisecond)) // docs/ha.md has what it takes on a machine that is not busy
		default:
			t.Fatalf("%s: no other machine answers at the address", fault.name)
		}
		harness.Eventually(t, harness.Soon, fault.name+": kubectl gets an answer", func() error {
			_, err := kubectl("get", "configmap", "through-the-address")
			return err
		})
		fault.undo(c.by(holder))
		c.whole()
		after, _, _ := w.state()
		// Elections may follow one another, but a server that has lost the address does not answer in between, unless
		// it is elected again.
		if since := after[len(before):]; len(since) == 0 || slices.Contains(since, holder) && c.by(holder).InLog(begins) == elected {
			t.Errorf("%s: answers came from machines %v, %v before", fault.name, after, before)
		}
	}
	runs, _, frames := w.state()
	t.Logf("%d answers and announcements, from machines %v one after the other", frames, runs)
	c.changes()
}

// changes: the cluster's address counts, whatever a server's flag says; it is changed and removed while all servers
// run, and what a killed server left of it goes at its next start.
func (c *vipCluster) changes() {
	c.Helper()
	const next = "10.77.0.101"
	first, third := c.servers[0], c.servers[2]
	vip := func(args ...string) (string, error) {
		return first.Run(first.Coracle(), append(append([]string{"vip"}, args...), "--data-dir", first.DataDir)...)
	}
	for address, why := range map[string]string{
		c.client.IP: "is in use", third.IP: "is in use", first.IP: "is an address that this machine has", "192.168.7.7": "in no network", "10.43.0.9": "cluster uses",
		"224.0.0.1": "not an address", "10.77.0.255": "the first or the last", "ten": "not an IP address", "10.77.0.8,10.77.0.9": "at most one",
	} {
		if out, err := vip("set", address); err == nil || !strings.Contains(err.Error(), why) {
			c.Errorf("set %s: %v, want %q\n%s", address, err, why, out)
		}
	}
	third.Kill()
	if out, err := third.NFT("list", "tables"); err != nil || !strings.Contains(out, "coracle-vip") {
		c.Errorf("the translations do not need the process: %v\n%s", err, out)
	}
	change := func(args ...string) {
		c.Helper()
		harness.Eventually(c, harness.Soon, fmt.Sprintf("coracle vip %v", args), func() error { // the server that was killed may have led
			return harness.Succeeds(vip(args...))
		})
	}
	change("set", next)
	harness.Eventually(c, harness.Soon, "the new address answers", func() error { return healthy(c.site, c.ca, next) })
	testenv.Until(c, harness.Soon, "the old address is silent", func() bool { return healthy(c.site, c.ca, testVIP) != nil })
	harness.Eventually(c, harness.Soon, "the kubeconfig names the new address", func() error {
		data, err := os.ReadFile(first.Kubeconfig)
		if err == nil && !strings.Contains(string(data), "https://"+next+":6443") {
			err = errors.New(string(data))
		}
		return err
	})
	testenv.NoError(c, first.Stop()) // it was started with --vip and the first address
	first.StartAPI()
	harness.Eventually(c, harness.Soon, "the server says which address counts", func() error { return first.LogSays("--vip is ignored: the cluster has another virtual address") })
	harness.Says(c, first.LogTail(1000), testVIP, next, "coracle vip set")
	testenv.NoError(c, first.Stop())
	first.Args = slices.DeleteFunc(first.Args, func(a string) bool { return a == "--vip" || a == testVIP })
	first.Start()
	third.Start()
	first.WaitAPI()
	third.WaitAPI()
	third.Kill()
	change("remove")
	harness.Eventually(c, harness.Soon, "no address is left", func() error {
		if healthy(c.site, c.ca, next) == nil {
			return fmt.Errorf("%s answers", next)
		}
		return nil
	})
	third.StartAPI()
	for _, s := range c.servers {
		harness.Eventually(c, harness.Soon, "the translations are gone", func() error {
			out, err := s.NFT("list", "tables")
			if err == nil && strings.Contains(out, "coracle-vip") {
				err = fmt.Errorf("machine %d: %s", s.Number, out)
			}
			return err
		})
		harness.Eventually(c, harness.Soon, "the kubeconfig names the machine itself", func() error {
			data, err := os.ReadFile(s.Kubeconfig)
			if err == nil && !strings.Contains(string(data), "https://127.0.0.1:6443") {
				err = errors.New(string(data))
			}
			return err
		})
	}
}
