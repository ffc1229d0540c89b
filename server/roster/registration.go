// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// A node registration is the record of an admitted node: a Secret in kube-system, written by server/admission.
const (
	// RegistrationSuffix follows the node's name in the Secret's name.
	RegistrationSuffix = ".node-password.coracle"
	// RegistrationHash is the hash of the node's password. RegistrationSince is when the machine was admitted last.
	RegistrationHash  = "hash"
	RegistrationSince = "since"
	// RegistrationToken is when the machine was last admitted with a token.
	RegistrationToken = "token"
	// RegistrationAddresses are the addresses with which the machine was admitted. They belong to the node even before
	// its Node lists them. With RegistrationExternal they are all addresses in its serving certificate: a Node may have
	// no others.
	RegistrationAddresses = "addresses"
	RegistrationExternal  = "external"
	// RegistrationTime is how long an admitted machine may take until its Node exists.
	RegistrationTime = 2 * time.Minute

	// ManagedBy is a label of objects that this program manages.
	ManagedBy = "app.kubernetes.io/managed-by"
)

// Registrations returns the registrations of all nodes, also of those without a Node.
func Registrations(ctx context.Context, client kubernetes.Interface) ([]corev1.Secret, error) {
	all, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: ManagedBy + "=coracle"})
	if err != nil {
		return nil, fmt.Errorf("listing machines that joined: %w", err)
	}
	var out []corev1.Secret
	for i := range all.Items {
		if strings.HasSuffix(all.Items[i].Name, RegistrationSuffix) {
			out = append(out, all.Items[i])
		}
	}
	return out, nil
}

// RegisteredAddresses returns all addresses with which a machine was admitted.
func RegisteredAddresses(registration *corev1.Secret) []netip.Addr {
	return append(ParseAddresses(registration.Data[RegistrationAddresses]), ParseAddresses(registration.Data[RegistrationExternal])...)
}

// FormatAddresses writes addresses in the form that ParseAddresses reads.
func FormatAddresses(ips []netip.Addr) []byte {
	return []byte(strings.Join(clusterconfig.Strings(ips), ","))
}

// ParseAddresses parses the addresses in a registration.
func ParseAddresses(data []byte) []netip.Addr {
	var out []netip.Addr
	for text := range strings.SplitSeq(string(data), ",") {
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// Recent says whether a registration's time, RegistrationSince or RegistrationToken, is so recent that the Node may not
// exist yet.
func Recent(registration *corev1.Secret, which string, now time.Time) bool {
	at, err := time.Parse(time.RFC3339, string(registration.Data[which]))
	return err == nil && now.Sub(at).Abs() < RegistrationTime
}

func (r *Roster) registration(ctx context.Context, node string) (*corev1.Secret, error) {
	client, err := r.o.API()
	if err != nil {
		return nil, err
	}
	s, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, node+RegistrationSuffix, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the registration of the node %s: %w", node, err)
	}
	return s, nil
}

// CertifiedAddresses returns the addresses in the serving certificate of a node, none if it has not joined.
func (r *Roster) CertifiedAddresses(ctx context.Context, node string) ([]netip.Addr, error) {
	s, err := r.registration(ctx, node)
	if err != nil || s == nil {
		return nil, err
	}
	return RegisteredAddresses(s), nil
}

// JustJoined says whether a machine was admitted with a token so recently that its Node may not exist yet. A machine
// that authenticates with a node's certificate instead does not count, as it has joined before.
func (r *Roster) JustJoined(ctx context.Context, node string) (bool, error) {
	s, err := r.registration(ctx, node)
	if err != nil || s == nil {
		return false, err
	}
	return Recent(s, RegistrationToken, r.o.Clock.Now()), nil
}

// JoinedAddresses returns the addresses with which machines were admitted, also of those without a Node.
func (r *Roster) JoinedAddresses(ctx context.Context) ([]netip.Addr, error) {
	client, err := r.o.API()
	if err != nil {
		return nil, err
	}
	all, err := Registrations(ctx, client)
	var out []netip.Addr
	for i := range all {
		out = append(out, RegisteredAddresses(&all[i])...)
	}
	return out, err
}
