// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/joining/protocol"
	joiningserver "github.com/coracle-k8s/coracle/joining/server"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
)

// admitServer returns the cluster's secrets to a machine that becomes a server.
func (a *Admission) admitServer(ctx context.Context, m joiningserver.Machine) (*protocol.Response, error) {
	client, err := a.o.API()
	if err != nil {
		return nil, err
	}
	members := a.o.Members()
	if len(members) >= MaxServers {
		return nil, protocol.Refuse(protocol.CodeRequest, "the cluster has %d servers, and more than %d make every write slower and "+
			"nothing safer. Join as an agent, or "+
			"remove a server that is lost (coracle member remove NAME)", len(members), MaxServers)
	}
	if m.Node.Name != "" {
		before, err := addressesBefore(ctx, client, m.Node.Name)
		if err != nil {
			return nil, err
		}
		if err := a.checkNode(m.Node, before); err != nil {
			return nil, err
		}
		if err := a.register(ctx, client, m); err != nil {
			return nil, err
		}
	}
	settings, err := a.settings(ctx, client)
	if err != nil {
		return nil, err
	}
	release, err := encryption.LockRotation(a.o.Folders.Cred) // for the reads; secrets.AdmitMember compares them later
	if err != nil {
		return nil, protocol.Refuse(protocol.CodeBusy, "%v", err)
	}
	defer release()
	// From now on this server's settings are also the cluster's, so that its flags must not change them. This is undone
	// if the other server never joins (WasJoined).
	founder := &Joined{Founder: true, Settings: settings, ServerSettings: a.o.ServerSettings}
	if _, err := os.Lstat(filepath.Join(a.o.Folders.Server, JoinedFile)); err != nil {
		if err := founder.Write(a.o.Folders.Server); err != nil {
			return nil, err
		}
	}
	out := &protocol.Response{ServerCA: a.o.PKI.NodesServerCA(), ClientCA: a.o.PKI.CAPEM(pki.ClientCA), Settings: settings}
	out.Settings.VIPs = a.o.VirtualIPs()
	out.Gossip = a.o.GossipKeys()
	files, err := a.o.Folders.Read()
	if err != nil {
		return nil, err
	}
	out.Server = &protocol.Server{Files: files, ServerSettings: a.o.ServerSettings, Flags: a.o.Flags}
	for _, m := range members {
		out.Server.Peers = append(out.Server.Peers, m.Address)
	}
	return out, nil
}

// addressesBefore returns the addresses of the node with this name, if it is a server's. A server that is reinstalled
// mostly has the same address as before, and its former installation is still a member. register decides whether it may
// have the name: not while that node is alive.
func addressesBefore(ctx context.Context, client kubernetes.Interface, name string) ([]netip.Addr, error) {
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the node %s: %w", name, err)
	}
	if !roster.IsServer(n) {
		return nil, nil
	}
	return clusterconfig.NodeAddresses(n), nil
}
