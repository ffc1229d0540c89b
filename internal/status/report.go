// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// Report is the state of a process. coracle status -o json prints it in JSON. Fields are only ever added.
type Report struct {
	Running    bool        `json:"running"`
	Role       string      `json:"role,omitempty"` // server or agent
	Version    string      `json:"version,omitempty"`
	Kubernetes string      `json:"kubernetes,omitempty"`
	Node       string      `json:"node,omitempty"`
	PID        int         `json:"pid,omitempty"`
	Started    time.Time   `json:"started,omitzero"`
	Ready      time.Time   `json:"ready,omitzero"` // when it was ready for the first time
	Stopping   bool        `json:"stopping,omitempty"`
	DataDir    string      `json:"dataDir"`
	API        string      `json:"api,omitempty"` // URL of the API server
	Memory     *Memory     `json:"memory,omitempty"`
	CPUSeconds float64     `json:"cpuSeconds,omitempty"` // used since the start
	Goroutines int         `json:"goroutines,omitempty"`
	Components []Component `json:"components,omitempty"`
	Cluster    *Cluster    `json:"cluster,omitempty"`
	// Servers are the cluster's servers. It is set when the process is a server.
	Servers *Servers `json:"servers,omitempty"`
	// Level is the cluster's level. There is none before this machine knows it.
	Level *Level `json:"level,omitempty"`
	// Members are the machines of the cluster as this machine's gossip knows them. There are none before this machine
	// is a gossip member.
	Members []Member `json:"members,omitempty"`
	// Content is nil where machines get no layers of images from one another.
	Content *Content `json:"content,omitempty"`
	// FailedShims is how many shims of containers containerd could not load at this start, which ends the containers.
	FailedShims int `json:"failedShims,omitempty"`
	// Notes are sentences about features that this cluster's users may expect and that coracle does not have yet, and
	// about what may become a problem.
	Notes []string `json:"notes,omitempty"`
	// Problems are sentences that say what is wrong and what to do.
	Problems []string `json:"problems"`
}

// Member is a machine of the cluster as gossip knows it. Its state may be out of date: the Node's state is
// authoritative.
type Member struct {
	Name    string `json:"name"`
	Role    string `json:"role"` // server, agent or unknown
	Address string `json:"address"`
	Version string `json:"version,omitempty"`
	// State is alive, silent, left (it stopped) or remembered (nothing received from it since this process started).
	State      string    `json:"state"`
	Since      time.Time `json:"since"`
	Self       bool      `json:"self,omitempty"`
	PodSubnets []string  `json:"podSubnets,omitempty"`
	// KeyGeneration is the generation of the member's gossip keys.
	KeyGeneration uint64 `json:"keyGeneration,omitempty"`
	// Level is the newest level that the member's program knows, and Running that with which it started; 0 if unknown.
	Level   int `json:"level,omitempty"`
	Running int `json:"running,omitempty"`
}

// Cluster counts the nodes and pods that the API server has. Ready pods are those that are ready or have finished their
// work. Failed attempts of Jobs are not counted.
type Cluster struct {
	Nodes      int `json:"nodes"`
	NodesReady int `json:"nodesReady"`
	Pods       int `json:"pods"`
	PodsReady  int `json:"podsReady"`
}

// longStart is how long a part may be starting before the report lists that as a problem.
const longStart = 2 * time.Minute

// makeReport adds to r, which has what does not change while a process runs, the state of the process and its parts.
func makeReport(r Report, parts *Board) Report {
	r.Running, r.PID, r.Problems = true, os.Getpid(), []string{}
	r.Goroutines, r.CPUSeconds, r.Components = runtime.NumGoroutine(), cpuSeconds(), parts.Components()
	if m, err := ReadMemory(os.Getpid()); err == nil {
		r.Memory = &m
	}
	for _, c := range r.Components {
		switch {
		case c.State.Trouble():
			r.Problems = append(r.Problems, c.Name+": "+c.Message)
		case c.State == Starting && time.Since(c.Since) > longStart:
			problem := fmt.Sprintf("%s: still starting after %v: %s", c.Name, time.Since(c.Since).Round(time.Second), c.Message)
			r.Problems = append(r.Problems, strings.TrimSuffix(problem, ": "))
		}
	}
	return r
}
