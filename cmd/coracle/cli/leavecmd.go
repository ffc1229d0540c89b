// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/status"
)

const onlyServer = "this machine has the cluster's only server: there is nothing to leave"

// exitStillMember is the exit code of coracle leave when one of several servers did not leave. coracle-uninstall stops
// at this code: to remove that server's data would lose a voter, and perhaps the last copy of the store.
const exitStillMember = 3

// stillMember wraps the error of a server that did not leave.
type stillMember struct{ error }

func (e stillMember) Unwrap() error { return e.error }

func leaveCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "leave", GroupID: groupUse, Short: "Take this machine out of the cluster that it joined",
		Long: `Takes this machine out of its cluster while coracle still runs on it: its node is cordoned, its pods are evicted, and
the node is deleted; a server is also removed from the store. After that, stop coracle and remove it.
coracle-uninstall does all of this.

It does nothing on a machine whose server is the only one of the cluster. An interruption does not stop what has begun. Arguments
of coracle server and coracle agent that name no folder are passed over, so that coracle-uninstall can hand on those of the service.

The exit code is 3 when a server of several did not leave, 1 when a node did not.`,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		Args:               cobra.ArbitraryArgs,
	})
	grace := addGrace(cmd.Command)
	return cmd.runs(func(inv *invocation) error {
		if err := checkGrace(*grace); err != nil {
			return usageError{inv.Command, err}
		}
		message, err := leaveCluster(inv.Context(), inv.tool, *grace)
		if message != "" {
			inv.Println(message)
		}
		return err
	})
}

// leaveCluster removes this machine from its cluster and returns a message that says what it did.
func leaveCluster(ctx context.Context, t *config.Tool, grace time.Duration) (message string, err error) {
	r, err := askStatus(ctx, t)
	switch {
	case errors.Is(err, status.ErrNotRunning) && !exists(t.Paths.ServerDir) && !exists(t.Paths.AgentDir):
		return "this machine is in no cluster", nil
	// roster.ReadPeerAddresses reads this file
	case errors.Is(err, status.ErrNotRunning) && exists(t.Paths.ServerDir) && !exists(filepath.Join(t.Paths.ServerDir, "peers.json")):
		return onlyServer, nil
	case errors.Is(err, status.ErrNotRunning) && exists(t.Paths.ServerDir):
		return "", stillMember{errors.New("coracle does not run, so this server cannot leave its cluster. Start it and leave, or run on " +
			"another server: coracle node remove NAME, with this machine's node (coracle member remove NAME if it has none)")}
	case errors.Is(err, status.ErrNotRunning):
		return "", errors.New("coracle does not run, so this machine cannot leave its cluster by itself. If other machines are in it, " +
			"run on a server: coracle node remove NAME, with this machine's node")
	case errors.Is(err, fs.ErrPermission):
		return "", errors.New("only root may do this; use: sudo coracle leave")
	case err != nil:
		return "", err
	}
	if r.Role == "server" {
		message, err := serverLeaves(ctx, t, r.Node, grace)
		if err != nil {
			err = stillMember{err}
		}
		return message, err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", nodecreds.In(filepath.Join(t.Paths.AgentDir, "cred")).KubeletKubeconfig)
	if err != nil {
		return "", fmt.Errorf("reading this node's credentials: %w. %s", err, whatIsLeft(r.Node))
	}
	rc.ContentType = runtime.ContentTypeJSON
	removed, err := leaveBy(ctx, rc, r.Node, grace)
	if err != nil {
		return "", fmt.Errorf("%w. %s", err, whatIsLeft(r.Node))
	}
	if !removed {
		return "the cluster has no node " + r.Node + " any more", nil
	}
	return "this machine is no node of the cluster any more", nil
}

func whatIsLeft(node string) string {
	return "What is left in the cluster is the node " + node + "; on a server: coracle node remove " + node
}

func askStatus(ctx context.Context, t *config.Tool) (*status.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return status.NewClient(t.Paths.AdminSocket).Status(ctx)
}

// leaveBy requests the removal of this machine's node and waits for it. It returns false when there is no such node.
func leaveBy(ctx context.Context, rc *rest.Config, node string, grace time.Duration) (bool, error) {
	rc.Timeout = apiTimeout
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return false, fmt.Errorf("making a client: %w", err)
	}
	err = requestLeave(ctx, c, node, grace)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// serverLeaves removes this server from the cluster. It uses another server's API, because this server's API ends when
// the server is removed from the store.
func serverLeaves(ctx context.Context, t *config.Tool, node string, grace time.Duration) (message string, err error) {
	s, err := askServers(ctx, t)
	if err != nil {
		return "", err
	}
	self, other := pickLeaving(s.Servers)
	if len(s.Servers) == 1 {
		return onlyServer, nil
	}
	if self == nil || other == nil {
		return "", fmt.Errorf("no other server answers, so this one cannot leave: %s. %s", s.Failures, whatIsLeftOfServer(node))
	}
	rc, err := adminConfig(t)
	if err != nil {
		return "", err
	}
	rc.Host = "https://" + other.Address
	removed, err := leaveBy(ctx, rc, node, grace)
	if err != nil {
		return "", fmt.Errorf("%w. %s", err, whatIsLeftOfServer(node))
	}
	if removed {
		return "this machine is no server and no node of the cluster any more", nil
	}
	// A server without a node only has to be removed from the store.
	id, err := strconv.ParseUint(self.ID, 16, 64)
	if err != nil {
		return "", fmt.Errorf("this server's id %q is no number: %w", self.ID, err)
	}
	err = withStore(ctx, t, func(ctx context.Context, c *clientv3.Client) error {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		_, err := c.MemberRemove(ctx, id)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("%w. What is left in the cluster is this server; on another one: coracle member remove %s", err, self.Name)
	}
	return "this machine is no server of the cluster any more", nil
}

func whatIsLeftOfServer(node string) string {
	return whatIsLeft(node) + " (if it has no such node: coracle member remove " + node + ")"
}

// pickLeaving returns this machine's server and another server that answers, preferably the leader.
func pickLeaving(servers []status.ClusterServer) (self, other *status.ClusterServer) {
	for i := range servers {
		s := &servers[i]
		switch {
		case s.Self:
			self = s
		case s.Answers && (other == nil || s.Role == status.Leader):
			other = s
		}
	}
	return self, other
}
