// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net"
	"net/url"
)

// Agent holds all settings of coracle agent, checked and complete.
type Agent struct {
	Paths   Paths
	Logging Logging
	Node    Node

	ServerURL *url.URL
	Token     string
	// Port is where other machines reach this one, by TCP and UDP.
	Port int
	// LocalPort is the loopback port at which the API is reached through any live server.
	LocalPort int

	Warnings []string // as in Server
}

func (r *reader) agent(h Host) Agent {
	a := Agent{
		Paths:   r.paths(),
		Logging: r.logging(),
		Node:    r.node(h, nil),
		Token:   r.secret("token", "token-file"),

		Port:      r.port("https-listen-port"),
		LocalPort: r.port("lb-server-port"),
	}
	if a.Token == "" && len(r.problems) == 0 {
		r.addProblem(Source{Flag: "token"}, "is needed; a server prints it with: coracle token print")
	}
	if a.ServerURL = r.serverURL("server"); a.ServerURL == nil && !r.isSet("server") {
		r.addProblem(Source{Flag: "server"}, "is needed: the address of a server to join, such as https://10.0.0.5:6443")
	}
	return a
}

// serverURL returns the URL of the server, and nil when none or a wrong one is given.
func (r *reader) serverURL(name string) *url.URL {
	it := r.single(name)
	if it.text == "" {
		return nil
	}
	u, err := url.Parse(it.text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		r.addProblem(it.src, "%q is not the address of a server; write it like https://10.0.0.5:6443", it.text)
		return nil
	}
	u.Path = ""
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "6443")
	}
	return u
}
