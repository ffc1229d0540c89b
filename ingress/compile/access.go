// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/password"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// sources reads the annotations about clients' addresses.
func (o *options) sources() {
	name := "allowlist-source-range"
	if _, ok := o.annotations[name]; !ok {
		name = "whitelist-source-range"
	}
	o.policy.Allow = o.networks(name)
	o.policy.Deny = slices.Concat(o.networks("denylist-source-range"), o.defaults.deny)
	switch o.annotations["satisfy"] {
	case "", "all":
	case "any":
		o.policy.SatisfyAny = true
	default:
		o.refuseAnnotation("satisfy", "which is neither any nor all")
	}
}

// networks reads an annotation with networks and addresses.
func (o *options) networks(name string) []string {
	if _, ok := o.annotations[name]; !ok {
		return nil
	}
	var out []string
	for _, text := range o.list(name) {
		if n, err := netip.ParsePrefix(text); err == nil {
			out = append(out, n.Masked().String())
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			o.refuseAnnotation(name, fmt.Sprintf("in which %.50q is no network", text))
			return nil
		}
		out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
	}
	if len(out) == 0 {
		o.refuseAnnotation(name, "which names no network")
	}
	return out
}

// maxBadUsers limits how many users the events of an Ingress name.
const maxBadUsers = 5

// Forms of Secrets with users.
const (
	authFile = "auth-file" // an htpasswd file in the key auth
	authMap  = "auth-map"  // a key for each user, with the hash
)

// basic reads the annotations about user names and passwords.
func (o *options) basic() {
	kind, asked := o.annotations["auth-type"]
	secret := o.annotations["auth-secret"]
	switch {
	case !asked && secret == "":
		return
	case kind != "basic":
		o.refuseFor(nginxPrefix+"auth-type",
			"the annotation %sauth-type is %.40q, and basic alone is served: the Ingress' routes answer 503", nginxPrefix, kind)
		return
	case secret == "":
		o.refuseFor(nginxPrefix+"auth-secret", "the annotation %sauth-secret is missing: the Ingress' routes answer 503", nginxPrefix)
		return
	}
	if namespace, name, ok := strings.Cut(secret, "/"); ok {
		if namespace != o.namespace {
			o.refuseAnnotation("auth-secret", "a Secret of another namespace")
			return
		}
		secret = name
	}
	form := o.annotations["auth-secret-type"]
	switch form {
	case "":
		form = authFile
	case authFile, authMap:
	default:
		o.refuseAnnotation("auth-secret-type", "which is neither auth-file nor auth-map")
		return
	}
	if secret == "" || strings.ContainsAny(secret, "/ ") {
		o.refuseAnnotation("auth-secret", "which is no name of a Secret")
		return
	}
	realm := o.annotations["auth-realm"]
	if strings.ContainsFunc(realm, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r > '~' }) ||
		strings.Contains(realm, "$") {
		o.refuseAnnotation("auth-realm", "which holds characters that a realm cannot have")
	}
	o.users = &users{types.NamespacedName{Namespace: o.namespace, Name: secret}, form}
	o.policy.Basic = &table.Basic{Users: table.UsersKey(o.namespace, secret, form), Realm: realm}
}

// users is the name and the form of a Secret with users.
type users struct {
	secret types.NamespacedName
	form   string
}

// userCost is the cost of a user beside the name and the hash, in bytes of a Secret.
const userCost = 16

// usersOf adds the section of the users that an Ingress needs. Without the section the proxy closes the route.
func (c *compiler) usersOf(a annotatedIngress) error {
	u := a.options.users
	if u == nil {
		return nil
	}
	c.r.Wanted[u.secret] = true
	if c.s.Secrets == nil {
		return nil
	}
	read, err := c.s.Memory.usersOf(c.s.Secrets[u.secret], u.form)
	if err != nil {
		return err
	}
	if read.flaw != "" {
		c.find(a.ing, Finding{ReasonUsers, nginxPrefix + "auth-secret", fmt.Sprintf(
			"the Secret %s %s: the Ingress' routes answer 503", u.secret.Name, read.flaw)})
		return nil
	}
	for _, bad := range read.badUsers {
		c.find(a.ing, Finding{ReasonUsers, nginxPrefix + "auth-secret", fmt.Sprintf(
			"the user %.60q of the Secret %s cannot log in: %s", bad.user, u.secret.Name, bad.reason)})
	}
	key := table.UsersKey(u.secret.Namespace, u.secret.Name, u.form)
	if !c.reserveSecret(u.secret.Namespace, key, read.size) {
		c.find(a.ing, tooLarge(u.secret.Namespace,
			fmt.Sprintf("the users of the Secret %s are left out, and the Ingress' routes answer 503", u.secret.Name)))
		return nil
	}
	c.r.Sections[key] = read.section
	return nil
}

// usersKey identifies the users in a Secret.
type usersKey struct {
	secret *corev1.Secret
	form   string
}

// readUsers is the result of reading a Secret with users.
type readUsers struct {
	flaw     string          // why there are none; empty for users
	section  json.RawMessage // of the table
	size     int             // what the section costs, in bytes of a Secret
	badUsers []badUser       // maxBadUsers at most
}

// badUser is a user who cannot log in.
type badUser struct{ user, reason string }

// usersOf returns the users in a Secret, which may be nil, from the cache if they are in it. Many Ingresses may name
// one Secret.
func (m *Memory) usersOf(s *corev1.Secret, form string) (readUsers, error) {
	key := usersKey{s, form}
	r, ok := m.users[key]
	if ok {
		return r, nil
	}
	if r, ok = m.lastUsers[key]; !ok {
		var found map[string]string
		if found, r.flaw = hashesOf(s, form); r.flaw == "" {
			good := map[string]string{}
			for _, user := range slices.Sorted(maps.Keys(found)) {
				err := password.Check(found[user])
				if err == nil {
					good[user] = found[user]
					r.size += len(user) + len(found[user]) + userCost
				} else if len(r.badUsers) < maxBadUsers {
					r.badUsers = append(r.badUsers, badUser{user, err.Error()})
				}
			}
			var err error
			if r.section, err = json.Marshal(table.Users{Hashes: good}); err != nil {
				return r, fmt.Errorf("writing the users of a Secret for the ingress table: %w", err)
			}
		}
	}
	m.users[key] = r
	return r, nil
}

// hashesOf reads the hashes in a Secret, which may be nil. why is the reason for which there are none.
func hashesOf(s *corev1.Secret, form string) (hashes map[string]string, why string) {
	if s == nil {
		return nil, "does not exist"
	}
	hashes = map[string]string{}
	if form == authMap {
		for user, hash := range s.Data {
			hashes[user] = strings.TrimSpace(string(hash))
		}
		return hashes, ""
	}
	text, ok := s.Data["auth"]
	if !ok {
		return nil, "has no key auth with a file of htpasswd's"
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		user, hash, ok := strings.Cut(line, ":")
		if !ok || line[0] == '#' {
			continue
		}
		hash, _, _ = strings.Cut(hash, ":")   // a comment
		if _, twice := hashes[user]; !twice { // nginx uses the first
			hashes[user] = hash
		}
	}
	return hashes, ""
}
