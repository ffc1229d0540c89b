// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserver "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/internal/convert"
)

type key = apiserver.Key

// layout is the content of a configuration of ours: all resources have the same keys. keys[0] writes, all read.
type layout struct {
	keys []key
	// active are the resources that are encrypted when written. Values stored in plain text before are still read.
	active []string
	// retired are resources that once were active. They are written in plain text and read in both forms.
	retired []string
}

// errForeign marks a valid configuration that this package did not write and must not touch.
var errForeign = errors.New("the encryption configuration was written by hand")

// setResources makes want active and retires formerly active resources that are not in want.
func (l *layout) setResources(want []string) error {
	var active []string
	for _, r := range want {
		r = strings.TrimSpace(r)
		switch {
		case r == "" || strings.ContainsAny(r, " ,;/"):
			return fmt.Errorf("%q is not a resource that can be encrypted: give the plural name, with the group behind a dot "+
				"if it has one, for example configmaps or widgets.example.com", r)
		case !slices.Contains(active, r):
			active = append(active, r)
		}
	}
	var retired []string
	for _, r := range slices.Concat(l.retired, l.active) {
		if !slices.Contains(active, r) && !slices.Contains(retired, r) {
			retired = append(retired, r)
		}
	}
	if len(active)+len(retired) == 0 {
		// Encryption was never on. The key is made all the same, so that a missing file always means a lost one.
		retired = []string{"secrets"}
	}
	l.active, l.retired = active, retired
	return nil
}

func (l layout) keyNames() []string {
	return convert.Slice(l.keys, func(k apiserver.Key) string { return k.Name })
}

func (l layout) encode() ([]byte, error) {
	encrypted := []apiserver.ProviderConfiguration{
		{Secretbox: &apiserver.SecretboxConfiguration{Keys: l.keys}},
		{Identity: &apiserver.IdentityConfiguration{}},
	}
	plain := []apiserver.ProviderConfiguration{encrypted[1], encrypted[0]}
	c := apiserver.EncryptionConfiguration{TypeMeta: metav1.TypeMeta{
		APIVersion: apiserver.SchemeGroupVersion.String(), Kind: "EncryptionConfiguration"}}
	// The first entry that matches a resource is used, so narrow ones come first. A wildcard must have an entry of its
	// own.
	for width := range 3 {
		add := func(list []string, providers []apiserver.ProviderConfiguration) {
			var narrow []string
			for _, r := range list {
				switch {
				case widthOf(r) != width:
				case width == 0:
					narrow = append(narrow, r)
				default:
					c.Resources = append(c.Resources, apiserver.ResourceConfiguration{Resources: []string{r}, Providers: providers})
				}
			}
			if len(narrow) > 0 {
				c.Resources = append(c.Resources, apiserver.ResourceConfiguration{Resources: narrow, Providers: providers})
			}
		}
		add(l.active, encrypted)
		add(l.retired, plain)
	}
	data, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding the encryption configuration: %w", err)
	}
	return data, nil
}

// widthOf returns 0 for one resource, 1 for a group, 2 for all resources.
func widthOf(resource string) int {
	switch {
	case resource == "*.*":
		return 2
	case strings.HasPrefix(resource, "*"):
		return 1
	}
	return 0
}

// readLayout reads a configuration. The error is fs.ErrNotExist when there is none, and errForeign when it is valid but
// not written by this package.
func readLayout(path string) (layout, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return layout{}, err
	}
	var c apiserver.EncryptionConfiguration
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return layout{}, fmt.Errorf("the encryption configuration %s is damaged: %w", path, err)
	}
	if c.Kind != "EncryptionConfiguration" || len(c.Resources) == 0 {
		return layout{}, fmt.Errorf("the encryption configuration %s is damaged: it is empty or of another kind", path)
	}
	var l layout
	for _, r := range c.Resources {
		keys, writes, ok := ourProviders(r.Providers)
		if !ok || (l.keys != nil && !slices.Equal(l.keys, keys)) {
			return layout{}, errForeign
		}
		l.keys = keys
		if writes {
			l.active = append(l.active, r.Resources...)
		} else {
			l.retired = append(l.retired, r.Resources...)
		}
	}
	return l, nil
}

// ourProviders recognizes [secretbox, identity], which encrypts on writes, and [identity, secretbox].
func ourProviders(p []apiserver.ProviderConfiguration) (keys []key, encrypts, ok bool) {
	if len(p) != 2 {
		return nil, false, false
	}
	encrypts = p[0].Secretbox != nil
	box, plain := p[0], p[1]
	if !encrypts {
		box, plain = plain, box
	}
	if box.Secretbox == nil || plain.Identity == nil || len(box.Secretbox.Keys) == 0 {
		return nil, false, false
	}
	return box.Secretbox.Keys, encrypts, true
}
