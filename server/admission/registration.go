// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-k8s/coracle/joining/protocol"
	joiningserver "github.com/coracle-k8s/coracle/joining/server"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/roster"
)

// register writes a node's registration. It refuses a machine if another one has the node's name or address.
func (a *Admission) register(ctx context.Context, client kubernetes.Interface, m joiningserver.Machine) error {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("reading the node: %w", err)
	}
	var node *corev1.Node
	if i := slices.IndexFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == m.Node.Name }); i >= 0 {
		node = &nodes.Items[i]
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if n.Name == m.Node.Name {
			continue
		}
		if err := mayTakeAddress(n, node, m); err != nil {
			return err
		}
		if i := slices.IndexFunc(m.Node.Addresses, func(ip netip.Addr) bool { return roster.HasAddress(n, ip) }); i >= 0 &&
			roster.Lives(n) {
			ip := m.Node.Addresses[i]
			if m.Joined { // two nodes exchanged addresses: the other one will report its new one
				return protocol.Refuse(protocol.CodeBusy, "%s is still the address of the node %s", ip, n.Name)
			}
			return protocol.Refuse(protocol.CodeAddress,
				"%s is the address of the node %s, which is alive; give this machine's own with --node-ip", ip, n.Name)
		}
	}
	if m.Joined && node == nil {
		return protocol.Refuse(protocol.CodeCertificate, "the node %s was deleted from the cluster; it can join again with a token",
			m.Node.Name)
	}
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	have, err := secrets.Get(ctx, m.Node.Name+roster.RegistrationSuffix, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		have = nil
	case err != nil:
		return fmt.Errorf("reading the node's password: %w", err)
	}
	if err := mayMoveTo(m, node, have); err != nil {
		return err
	}
	registered := node != nil && !slices.ContainsFunc(slices.Concat(m.Node.Addresses, m.Node.External),
		func(ip netip.Addr) bool { return !roster.HasAddress(node, ip) })
	want := a.newRegistration(m.Node)
	if m.Joined { // its request has no token
		if delete(want.Data, roster.RegistrationToken); have != nil {
			want.Data[roster.RegistrationToken] = have.Data[roster.RegistrationToken]
		}
	}
	known := have != nil && subtle.ConstantTimeCompare(have.Data[roster.RegistrationHash], want.Data[roster.RegistrationHash]) == 1
	same := have != nil && bytes.Equal(have.Data[roster.RegistrationAddresses], want.Data[roster.RegistrationAddresses]) &&
		bytes.Equal(have.Data[roster.RegistrationExternal], want.Data[roster.RegistrationExternal])
	if known && registered && same {
		return nil
	}
	if !known && !m.Joined { // a machine with the node's key may have another password: its file was lost
		if err := a.mayTakeOver(m.Node.Name, m.Role, node, have); err != nil {
			return err
		}
	}
	if !known || !same || !a.fresh(have) {
		if have, err = writeRegistration(ctx, secrets, have, want); err != nil {
			return err
		}
	}
	if registered {
		return nil
	}
	return a.checkPending(ctx, client, have, m.Node.Addresses)
}

// newRegistration returns the registration of an admitted machine.
func (a *Admission) newRegistration(n protocol.Node) *corev1.Secret {
	sum := sha256.Sum256([]byte(n.Password))
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: n.Name + roster.RegistrationSuffix,
			Labels: map[string]string{roster.ManagedBy: "coracle"}},
		Data: map[string][]byte{
			roster.RegistrationHash: []byte(hex.EncodeToString(sum[:])), roster.RegistrationSince: []byte(a.now()),
			roster.RegistrationToken:     []byte(a.now()),
			roster.RegistrationAddresses: roster.FormatAddresses(n.Addresses),
			roster.RegistrationExternal:  roster.FormatAddresses(n.External),
		},
	}
}

func (a *Admission) now() string { return a.o.Clock.Now().UTC().Format(time.RFC3339) }

// mayTakeAddress keeps a machine that is a node from taking an address of another node without contact. The first owner
// keeps the address, unless the machine sends its request from that very address, and so has it on the network. own is
// the machine's Node. A machine without a Node was admitted with a token, and may replace a dead machine.
func mayTakeAddress(silent, own *corev1.Node, m joiningserver.Machine) error {
	if own == nil || roster.Lives(silent) {
		return nil
	}
	for _, ip := range slices.Concat(m.Node.Addresses, m.Node.External) {
		if roster.HasAddress(silent, ip) && !roster.HasAddress(own, ip) && ip != m.From {
			return protocol.Refuse(protocol.CodeBusy, "%s is still the address of the node %s, which does not answer. This machine can have "+
				"it when it sends the request from that address, "+
				"or when that node is deleted: kubectl delete node %s", ip, silent.Name, silent.Name)
		}
	}
	return nil
}

// mayMoveTo keeps a machine that has a node's certificate and no token from getting an address that no node has: the
// whole cluster sends traffic for that address to it. It may have the addresses with which it was admitted, those of
// its Node, and the one from which it sends the request, which proves that it has it. A machine with a token may name
// any address: the token is the permission for that.
func mayMoveTo(m joiningserver.Machine, own *corev1.Node, claim *corev1.Secret) error {
	if !m.Joined {
		return nil
	}
	var had []netip.Addr
	if claim != nil {
		had = roster.RegisteredAddresses(claim)
	}
	for _, ip := range slices.Concat(m.Node.Addresses, m.Node.External) {
		if ip != m.From && !slices.Contains(had, ip) && (own == nil || !roster.HasAddress(own, ip)) {
			return protocol.Refuse(protocol.CodeCertificate, "%s is a new address for the node %s, and the request came from another one (%s). "+
				"With its certificate alone a node gets only an address that it "+
				"sends from; with a valid token it gets any", ip, m.Node.Name, m.From)
		}
	}
	return nil
}

// writeRegistration writes want, in place of have if that is not nil.
func writeRegistration(ctx context.Context, secrets corev1client.SecretInterface, have, want *corev1.Secret) (*corev1.Secret, error) {
	var err error
	if have == nil {
		have, err = secrets.Create(ctx, want, metav1.CreateOptions{})
	} else {
		want.ResourceVersion = have.ResourceVersion
		have, err = secrets.Update(ctx, want, metav1.UpdateOptions{})
	}
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		return nil, protocol.Refuse(protocol.CodeBusy, "another machine is joining under the name %s at this moment",
			strings.TrimSuffix(want.Name, roster.RegistrationSuffix))
	}
	if err != nil {
		return nil, fmt.Errorf("saving the node's password: %w", err)
	}
	return have, nil
}

// fresh says whether a machine was admitted so recently that its Node may not exist yet.
func (a *Admission) fresh(registration *corev1.Secret) bool {
	return roster.Recent(registration, roster.RegistrationSince, a.o.Clock.Now())
}

// checkPending refuses a machine if another one without a Node was admitted with one of the addresses before. Two
// machines may join at the same moment, perhaps at two servers. Both have written their registrations by now, and the
// earlier one is admitted.
func (a *Admission) checkPending(ctx context.Context, client kubernetes.Interface, own *corev1.Secret, ips []netip.Addr) error {
	all, err := roster.Registrations(ctx, client)
	if err != nil {
		return err
	}
	for i := range all {
		other := &all[i]
		if !a.fresh(other) || !writtenEarlier(other, own) {
			continue
		}
		for _, ip := range roster.ParseAddresses(other.Data[roster.RegistrationAddresses]) {
			if slices.Contains(ips, ip) {
				return protocol.Refuse(protocol.CodeBusy, "another machine has just joined with the address %s, as the node %s; each "+
					"machine has its own (--node-ip)",
					ip, strings.TrimSuffix(other.Name, roster.RegistrationSuffix))
			}
		}
	}
	return nil
}

// writtenEarlier compares two Secrets by the store's revisions at which they were written.
func writtenEarlier(a, b *corev1.Secret) bool {
	at := func(s *corev1.Secret) uint64 {
		n, _ := strconv.ParseUint(s.ResourceVersion, 10, 64) // 0 in tests without a store
		return n
	}
	return cmp.Or(cmp.Compare(at(a), at(b)), cmp.Compare(a.Name, b.Name)) < 0
}

// mayTakeOver says whether a machine that does not have the node's password may become that node. It may if the machine
// with that name is dead or was removed. Only a machine with the server token may replace a server.
func (a *Admission) mayTakeOver(name string, role token.Role, node *corev1.Node, have *corev1.Secret) error {
	taken := func(why string) error {
		return protocol.Refuse(protocol.CodeName, "there is a node named %s already, and %s. Choose another name with --node-name, or, "+
			"if this machine takes the place of "+
			"that one, delete the node first: kubectl delete node %s", name, why, name)
	}
	switch {
	case node != nil && (name == a.o.NodeName || roster.IsServer(node) && role != token.RoleServer):
		return taken("it is a server's own")
	case node != nil && roster.Lives(node):
		return taken("it is alive")
	case have != nil && a.fresh(have):
		return taken("another machine has just joined under it")
	}
	return nil
}
