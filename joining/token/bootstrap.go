// SPDX-License-Identifier: Apache-2.0

package token

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/token/util"
)

// NodeGroup is the group as which a bootstrap token authenticates, besides system:bootstrappers. server/bootstrap
// allows it to request a node's certificate.
const NodeGroup = "system:bootstrappers:coracle:node"

// Bootstrap is a token that expires. It is stored in a Secret kube-system/bootstrap-token-<id>, in the form that
// upstream's token authenticator, signer and cleaner know.
type Bootstrap struct {
	ID          string    `json:"id"`
	Secret      string    `json:"-"`
	Description string    `json:"description,omitempty"`
	Expires     time.Time `json:"expires,omitzero"` // zero: never
	Usages      []string  `json:"usages,omitempty"`
	Groups      []string  `json:"groups,omitempty"`
}

// CreateOptions describe the token to make.
type CreateOptions struct {
	// Token is "<id>.<secret>" when the operator chose it; empty makes a random one.
	Token string
	// TTL is how long it works. Zero means forever.
	TTL time.Duration
	// Description is for users.
	Description string
	// Now is when TTL begins.
	Now time.Time
}

// Generate returns a random token in the form of CreateOptions.Token. It is not stored in any cluster.
func Generate() (string, error) {
	made, err := util.GenerateBootstrapToken()
	if err != nil {
		return "", fmt.Errorf("making a token: %w", err)
	}
	return made, nil
}

// Create makes a bootstrap token with which nodes may join.
func Create(ctx context.Context, c kubernetes.Interface, o CreateOptions) (Bootstrap, error) {
	if o.TTL < 0 {
		return Bootstrap{}, fmt.Errorf("the token's time to live is %s, and must not be negative", o.TTL)
	}
	if o.Token == "" {
		var err error
		if o.Token, err = Generate(); err != nil {
			return Bootstrap{}, err
		}
	}
	m := bootstrapForm.FindStringSubmatch(o.Token)
	if m == nil {
		return Bootstrap{}, errors.New("a token that expires has the form <6 characters>.<16 characters> of a-z and 0-9, for example " +
			"07401b.f395accd246ae52d")
	}
	b := Bootstrap{ID: m[1], Secret: m[2], Description: o.Description, Usages: slices.Clone(api.KnownTokenUsages),
		Groups: []string{NodeGroup}}
	if o.TTL > 0 {
		b.Expires = o.Now.Add(o.TTL).UTC().Truncate(time.Second)
	}
	_, err := c.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, b.secret(), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return Bootstrap{}, fmt.Errorf("a token with the id %s exists; delete it first (coracle token delete %s) or choose another id",
			b.ID, b.ID)
	}
	if err != nil {
		return Bootstrap{}, fmt.Errorf("storing the token: %w", err)
	}
	return b, nil
}

// List returns every bootstrap token, by id. It leaves out Secrets without a well-formed token, which upstream's
// authenticator ignores.
func List(ctx context.Context, c kubernetes.Interface) ([]Bootstrap, error) {
	secrets, err := c.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{
		FieldSelector: "type=" + string(api.SecretTypeBootstrapToken),
	})
	if err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}
	var out []Bootstrap
	for i := range secrets.Items {
		if b, ok := fromSecret(&secrets.Items[i]); ok {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b Bootstrap) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Delete deletes a bootstrap token. It accepts the id, "<id>.<secret>" or the whole token as it was printed.
func Delete(ctx context.Context, c kubernetes.Interface, idOrToken string) error {
	id := strings.TrimSpace(idOrToken)
	if t, err := Parse(id); err == nil && t.Role == RoleBootstrap {
		id = t.ID
	}
	if !util.IsValidBootstrapTokenID(id) {
		return fmt.Errorf("%q is not the id of a token: six characters of a-z and 0-9, as `coracle token list` prints", idOrToken)
	}
	name := util.BootstrapTokenSecretName(id)
	err := c.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no token with the id %s; `coracle token list` prints those there are", id)
	}
	if err != nil {
		return fmt.Errorf("deleting the token %s: %w", id, err)
	}
	return nil
}

// Token returns the token that a joining machine is given.
func (b Bootstrap) Token(caHash string) Token {
	return Token{CAHash: caHash, Role: RoleBootstrap, ID: b.ID, Secret: b.Secret}
}

// Expired reports whether the token has stopped working.
func (b Bootstrap) Expired(now time.Time) bool { return !b.Expires.IsZero() && !now.Before(b.Expires) }

func (b Bootstrap) secret() *corev1.Secret {
	data := map[string]string{
		api.BootstrapTokenIDKey:          b.ID,
		api.BootstrapTokenSecretKey:      b.Secret,
		api.BootstrapTokenExtraGroupsKey: strings.Join(b.Groups, ","),
	}
	if b.Description != "" {
		data[api.BootstrapTokenDescriptionKey] = b.Description
	}
	if !b.Expires.IsZero() {
		data[api.BootstrapTokenExpirationKey] = b.Expires.Format(time.RFC3339)
	}
	for _, u := range b.Usages {
		data[api.BootstrapTokenUsagePrefix+u] = "true"
	}
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: util.BootstrapTokenSecretName(b.ID)},
		Type:       api.SecretTypeBootstrapToken,
		Data:       map[string][]byte{},
	}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func fromSecret(s *corev1.Secret) (Bootstrap, bool) {
	get := func(k string) string { return string(s.Data[k]) }
	b := Bootstrap{ID: get(api.BootstrapTokenIDKey), Secret: get(api.BootstrapTokenSecretKey),
		Description: get(api.BootstrapTokenDescriptionKey)}
	if s.Name != util.BootstrapTokenSecretName(b.ID) || !bootstrapForm.MatchString(b.ID+"."+b.Secret) {
		return Bootstrap{}, false
	}
	if e := get(api.BootstrapTokenExpirationKey); e != "" {
		t, err := time.Parse(time.RFC3339, e)
		if err != nil {
			return Bootstrap{}, false // upstream: "should be considered invalid"
		}
		b.Expires = t
	}
	for _, k := range slices.Sorted(maps.Keys(s.Data)) {
		if u, ok := strings.CutPrefix(k, api.BootstrapTokenUsagePrefix); ok && get(k) == "true" {
			b.Usages = append(b.Usages, u)
		}
	}
	if g := get(api.BootstrapTokenExtraGroupsKey); g != "" {
		b.Groups = strings.Split(g, ",")
	}
	return b, true
}
