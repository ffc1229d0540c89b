// SPDX-License-Identifier: Apache-2.0

// Package plugin is the program part of Coracle's CNI plugin. containerd executes it for every pod sandbox (CNI
// specification 1.0 and 1.1).
//
// It reads the environment and the network configuration, sends both to the agent over the unix socket that the
// configuration names, and prints the response. It never touches the network and has no state: the agent owns both. A
// program this small starts in a few milliseconds.
package plugin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/coracle-k8s/coracle/cni/wire"
)

// Options are the plugin's environment, which tests replace.
type Options struct {
	Getenv func(string) string
	Stdin  io.Reader
	Stdout io.Writer
}

// netConf has the fields of the network configuration that the plugin itself needs.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Socket     string `json:"socket"`
}

// Run serves one CNI call and returns the process's exit code: 0, or 1 with an error document on
// standard output.
func Run(ctx context.Context, o Options) int {
	conf, out, err := serve(ctx, o)
	if err != nil {
		err.CNIVersion = conf.CNIVersion
		if !wire.SupportsVersion(err.CNIVersion) {
			err.CNIVersion = wire.Versions[0]
		}
		out, _ = json.Marshal(err)
	}
	if len(out) > 0 {
		// An error cannot be reported when standard output is closed.
		_, _ = o.Stdout.Write(append(out, '\n'))
	}
	if err != nil {
		return 1
	}
	return 0
}

func serve(ctx context.Context, o Options) (netConf, []byte, *wire.Error) {
	var conf netConf
	req := wire.Request{
		Command:     o.Getenv("CNI_COMMAND"),
		ContainerID: o.Getenv("CNI_CONTAINERID"),
		Netns:       o.Getenv("CNI_NETNS"),
		IfName:      o.Getenv("CNI_IFNAME"),
		Args:        o.Getenv("CNI_ARGS"),
	}
	stdin, readErr := io.ReadAll(io.LimitReader(o.Stdin, wire.MaxMessage))
	if readErr != nil {
		return conf, nil, wire.Errorf(wire.CodeIO, "reading the network configuration: %v", readErr)
	}
	if req.Command == wire.CommandVersion {
		// Only the version is read from the configuration here, and a runtime may send none.
		_ = json.Unmarshal(stdin, &conf)
		out, err := versionReply(conf.CNIVersion)
		return conf, out, err
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return conf, nil, wire.Errorf(wire.CodeDecode, "decoding the network configuration: %v", err)
	}
	req.Config = stdin
	if err := check(req, conf); err != nil {
		return conf, nil, err
	}
	resp, callErr := wire.Call(ctx, conf.Socket, req)
	if callErr != nil {
		return conf, nil, noAgent(req, callErr)
	}
	return conf, resp.Result, resp.Error
}

// check rejects requests that no agent could serve (CNI specification, section 2).
func check(req wire.Request, conf netConf) *wire.Error {
	if !wire.SupportsVersion(conf.CNIVersion) {
		return wire.Errorf(wire.CodeIncompatibleVersion,
			"the network configuration says cniVersion %q; this plugin speaks %v", conf.CNIVersion, wire.Versions)
	}
	if conf.Socket == "" {
		return wire.Errorf(wire.CodeInvalidConfig, "the network configuration names no agent socket (key \"socket\")")
	}
	switch req.Command {
	case wire.CommandGC, wire.CommandStatus:
		return nil
	case wire.CommandAdd, wire.CommandCheck:
		if req.Netns == "" {
			return wire.Errorf(wire.CodeInvalidEnvironment, "CNI_NETNS is not set")
		}
	case wire.CommandDel: // its namespace may not exist any more
	default:
		return wire.Errorf(wire.CodeInvalidEnvironment, "unknown CNI_COMMAND %q", req.Command)
	}
	if req.ContainerID == "" {
		return wire.Errorf(wire.CodeInvalidEnvironment, "CNI_CONTAINERID is not set")
	}
	if req.IfName == "" {
		return wire.Errorf(wire.CodeInvalidEnvironment, "CNI_IFNAME is not set")
	}
	return nil
}

// noAgent returns the error for an agent that did not reply. A runtime retries on code 11.
func noAgent(req wire.Request, err error) *wire.Error {
	if req.Command == wire.CommandStatus {
		return &wire.Error{Code: wire.CodeUnavailable, Msg: "the coracle agent is not running", Details: err.Error()}
	}
	return &wire.Error{
		Code:    wire.CodeTryAgainLater,
		Msg:     "the coracle agent is not running or still starting; running pods are not affected, try again later",
		Details: err.Error(),
	}
}

func versionReply(asked string) ([]byte, *wire.Error) {
	asked = cmp.Or(asked, wire.Versions[len(wire.Versions)-1])
	out, err := json.Marshal(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{asked, wire.Versions})
	if err != nil {
		return nil, wire.Errorf(wire.CodeIO, "%s", fmt.Sprint(err))
	}
	return out, nil
}
