// SPDX-License-Identifier: Apache-2.0

// Package registries converts the operator's registries.yaml, in k3s' format, to containerd's configuration: one folder
// with a hosts.toml for each registry, and the credentials of hosts.
//
// It owns the folder with the result and empties it first. Load and Write contact no registry. Relay requests mirrors.
//
//	mirrors:
//	  docker.io:                       # or "*" for every registry without an entry of its own
//	    endpoint: ["https://mirror.example.org", "http://10.0.0.5:5000"]
//	    rewrite: {"^library/(.*)": "cache/$1"}
//	configs:
//	  mirror.example.org:
//	    auth: {username: u, password: p}   # or auth: <base64 of u:p>, or identity_token
//	    tls: {ca_file: /etc/ssl/mirror.pem, cert_file: , key_file: , insecure_skip_verify: false}
//	  "*": {}                              # the same, for every host without an entry of its own
package registries

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"go.yaml.in/yaml/v3"
)

// anyRegistry is the entry for registries without an entry of their own.
const anyRegistry = "*"

// hubHost is the host that serves docker.io.
const hubHost = "registry-1.docker.io"

// Config is the content of registries.yaml.
type Config struct {
	Mirrors map[string]Mirror `yaml:"mirrors"`
	Configs map[string]Host   `yaml:"configs"`

	// DisableDefaultEndpoint leaves registries that have mirrors out: images come from the mirrors alone.
	DisableDefaultEndpoint bool `yaml:"-"`
}

// Mirror lists endpoints that are tried for images of one registry before the registry itself.
type Mirror struct {
	Endpoints []string `yaml:"endpoint"`
	// Rewrites map patterns of repository names to the repositories' names at the endpoints.
	Rewrites map[string]string `yaml:"rewrite"`
}

// Host has the settings for one host, a registry or a mirror.
type Host struct {
	Auth *Auth `yaml:"auth"`
	TLS  *TLS  `yaml:"tls"`
}

// Auth has credentials: a name and a password, or both as base64 in Auth, or a token.
type Auth struct {
	Username      string `yaml:"username"`
	Password      string `yaml:"password"`
	Auth          string `yaml:"auth"`
	IdentityToken string `yaml:"identity_token"`
}

// TLS holds paths on this machine.
type TLS struct {
	CAFile             string `yaml:"ca_file"`
	CertFile           string `yaml:"cert_file"`
	KeyFile            string `yaml:"key_file"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
}

// Load reads the file. A missing file is an empty configuration. For a malformed file the error names the line.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("registries: %w", err)
	}
	c, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("registries: %s: %w", path, err)
	}
	return c, nil
}

func parse(data []byte) (*Config, error) {
	c := &Config{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, plain(err)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one YAML document")
	}
	return c, c.check()
}

// goNames matches the decoder's names of our types.
var goNames = regexp.MustCompile(` (not found )?in type registries\.\w+| into registries\.\w+`)

// plain removes the names of Go types from the decoder's message. The line number stays in it.
func plain(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.ReplaceAll(text, "unmarshal errors:\n  ", "")
	text = goNames.ReplaceAllStringFunc(text, func(s string) string {
		if strings.Contains(s, "not found") {
			return " is not known"
		}
		return ""
	})
	return errors.New(strings.ReplaceAll(text, "\n  ", "; "))
}

// check finds mistakes that would otherwise only fail at the first pull.
func (c *Config) check() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Mirrors)) {
		m := c.Mirrors[name]
		if name != anyRegistry && !isHost(name) {
			errs = append(errs, fmt.Errorf("mirrors: %q is not a registry's name; write its host, with the port if it has one, and "+
				"nothing else", name))
		}
		for _, e := range m.Endpoints {
			if _, err := endpointURL(e); err != nil {
				errs = append(errs, fmt.Errorf("mirrors: %s: %w", name, err))
			}
		}
		if _, err := compile(m.Rewrites); err != nil {
			errs = append(errs, fmt.Errorf("mirrors: %s: %w", name, err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Configs)) {
		h := c.Configs[name]
		if !isHost(name) {
			errs = append(errs, fmt.Errorf("configs: %q is not a host; write its name, with the port if it has one, and nothing else",
				name))
		}
		if h.Auth != nil {
			if _, _, err := h.Auth.pair(); err != nil {
				errs = append(errs, fmt.Errorf("configs: %s: %w", name, err))
			}
		}
		if h.TLS == nil {
			continue
		}
		if (h.TLS.CertFile == "") != (h.TLS.KeyFile == "") {
			errs = append(errs, fmt.Errorf("configs: %s: tls: cert_file and key_file go together", name))
		}
		for _, f := range []string{h.TLS.CAFile, h.TLS.CertFile, h.TLS.KeyFile} {
			if _, err := os.Stat(f); f != "" && err != nil {
				errs = append(errs, fmt.Errorf("configs: %s: tls: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// host returns the settings of a host: those of its own entry, or else those of the entry for any host. Docker Hub's
// host has another name than the registry in images' names.
func (c *Config) host(name string) Host {
	if own, ok := c.Configs[name]; ok {
		return own
	}
	if hub, ok := c.Configs["docker.io"]; ok && name == hubHost {
		return hub
	}
	return c.Configs[anyRegistry]
}

// Auths returns the credentials of all hosts that the file names, by host. For other hosts see AuthOfImage.
func (c *Config) Auths() map[string]Auth {
	hosts := slices.Collect(maps.Keys(c.Configs))
	for name, m := range c.Mirrors {
		hosts = append(hosts, name)
		for _, e := range m.Endpoints {
			if u, err := endpointURL(e); err == nil {
				hosts = append(hosts, u.Host)
			}
		}
	}
	out := map[string]Auth{}
	for _, h := range hosts {
		for _, name := range []string{h, defaultServer(h).Host} {
			if a := c.host(name).Auth; a != nil && name != anyRegistry {
				out[name] = *a
			}
		}
	}
	return out
}

// AuthOfImage returns the host and the credentials of an image's registry, if the file does not name the registry and
// has credentials for any host. containerd has no setting for these: each pull has to have them.
func (c *Config) AuthOfImage(image string) (host string, auth *Auth) {
	if c.Configs[anyRegistry].Auth == nil {
		return "", nil
	}
	ref, err := reference.ParseDockerRef(image)
	if err != nil {
		return "", nil // containerd says so
	}
	host = defaultServer(reference.Domain(ref)).Host
	if _, named := c.Auths()[host]; named {
		return "", nil
	}
	return host, c.host(host).Auth
}

// isHost reports whether s is a host name or address with an optional port.
func isHost(s string) bool {
	if s == "" || strings.ContainsAny(s, "/ @?#") || strings.Contains(s, "://") {
		return false
	}
	if host, port, err := net.SplitHostPort(s); err == nil {
		return host != "" && port != ""
	}
	return !strings.Contains(s, ":") || net.ParseIP(strings.Trim(s, "[]")) != nil
}

// endpointURL completes an endpoint: the scheme is https by default, and the path is the API's root by default.
func endpointURL(s string) (*url.URL, error) {
	text := s
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", s, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("endpoint %q is not a URL like https://mirror.example.org:5000 (credentials go under configs)", s)
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	u.Path = cmp.Or(u.Path, "/v2")
	return u, nil
}

// Write makes dir contain this configuration and nothing else. Mirrors that the relay asks are replaced by relay,
// which is nil if there are none.
func (c *Config) Write(dir string, relay *Relay) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("registries: empty the configuration folder: %w", err)
	}
	for _, f := range c.files(relay) {
		path := filepath.Join(dir, f.dir, "hosts.toml")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("registries: %w", err)
		}
		if err := os.WriteFile(path, []byte(f.toml), 0o600); err != nil {
			return fmt.Errorf("registries: %w", err)
		}
	}
	return nil
}
