// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/config"
)

// nameNode sets the name of this machine's node. A machine that was a node keeps its name, because its pods, volumes
// and addresses in the cluster belong to that name. A changed host name does not request another node, and another
// --node-name is refused. The returned function keep writes the name to a file. The caller calls it once the name has
// been accepted.
func nameNode(n *config.Node, p config.Paths, log *slog.Logger) (keep func() error, err error) {
	if n.WithID {
		if n.Name, err = config.NameWithID(n.Name, p.AgentDir); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(p.AgentDir, "node-name")
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("reading this node's name: %w", err)
		return func() error { return err }, nil // a server serves without its node
	}
	was := strings.TrimSpace(string(data))
	switch {
	case was == "" || was == n.Name:
	case n.NameGiven:
		return nil, fmt.Errorf("--node-name: this machine is the node %s of its cluster and was now given the name %s. Nothing was "+
			"changed. To keep the name %[1]s, set --node-name to it. "+
			"To make it another node: coracle kubectl drain %[1]s --ignore-daemonsets --delete-emptydir-data, coracle kubectl delete "+
			"node %[1]s, then remove %[3]s and start again", was, n.Name, file)
	default:
		log.Warn("the host name or --with-node-id has changed; the node keeps its name", "node", was, "now", n.Name)
		n.Name = was
	}
	return func() error {
		if err := os.MkdirAll(p.AgentDir, 0o755); err != nil {
			return fmt.Errorf("saving this node's name: %w", err)
		}
		_, err := atomicfile.WriteIfDifferent(file, []byte(n.Name+"\n"), 0o644)
		return err
	}, nil
}
