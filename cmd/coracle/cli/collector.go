// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/bugreport"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli/redact"
	"github.com/coracle-k8s/coracle/internal/config"
)

// collector gathers the archive of coracle debug collect.
type collector struct {
	app      *App
	tool     *config.Tool
	pid      int // of the running process, or 0
	command  config.Command
	sources  config.Sources // of that process' settings, or of those that a new one would have
	shown    []config.Shown
	problems config.Problems
	names    []string // what registries.yaml names
	mask     *redact.Masker
}

// newCollector finds the process and its settings. What is secret in them is masked wherever it occurs.
func newCollector(a *App, t *config.Tool) *collector {
	c := &collector{app: a, tool: t, command: config.ServerCommand, sources: a.sources(nil)}
	if !exists(t.Paths.ServerDir) && exists(t.Paths.AgentDir) {
		c.command = config.AgentCommand
	}
	if o := readPIDFile(t.Paths.PIDFile); o.alive {
		c.pid = o.pid
		c.readProcess()
	}
	var secrets []string
	c.shown, secrets, c.problems = config.Show(c.sources, c.command)
	for _, name := range a.TokenFiles() {
		text, _ := os.ReadFile(filepath.Join(t.Paths.ServerDir, name)) // without it there is nothing to mask
		secrets = append(secrets, tokensIn(string(text))...)
	}
	for _, variable := range slices.Concat(a.Environ, c.sources.Environ) {
		name, value, _ := strings.Cut(variable, "=")
		if redact.IsSecret(name) && !strings.HasPrefix(value, "/") { // PWD is a folder
			secrets = append(secrets, value)
		}
	}
	names, logins := c.registries()
	c.names = names
	c.mask = redact.New(append(secrets, logins...)...)
	return c
}

// tokensIn returns the words of a file of tokens, and the secret in each, which may be used alone.
func tokensIn(text string) []string {
	var out []string
	for word := range strings.FieldsSeq(text) {
		out = append(out, word, word[strings.LastIndexByte(word, ':')+1:])
	}
	return out
}

// readProcess finds the flags and the environment with which the process was started.
func (c *collector) readProcess() {
	read := func(name string) []string {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.pid, name)) // without it the settings of the file are shown
		return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	}
	args := read("cmdline")
	at := slices.IndexFunc(args, func(arg string) bool { return arg == "server" || arg == "agent" })
	if at < 0 {
		return
	}
	if args[at] == "agent" {
		c.command = config.AgentCommand
	}
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	set.ParseErrorsAllowlist.UnknownFlags = true
	set.Usage = func() {}
	flags := config.Register(set, c.command)
	if err := set.Parse(args[at+1:]); err == nil {
		c.sources.Flags = flags
	}
	c.sources.Environ = read("environ")
}

// setting returns the value of a setting, or "".
func (c *collector) setting(name string) string {
	for _, s := range c.shown {
		if s.Name == name {
			return s.Value
		}
	}
	return ""
}

// registries returns what registries.yaml says, as far as others may see it, and all texts of its logins.
func (c *collector) registries() (lines, logins []string) {
	path := cmp.Or(c.setting("private-registry"), config.DefaultRegistriesFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return []string{err.Error()}, nil
	}
	var doc struct {
		Mirrors map[string]struct {
			Endpoint []string `yaml:"endpoint"`
		} `yaml:"mirrors"`
		Configs map[string]struct {
			Auth yaml.Node      `yaml:"auth"`
			TLS  map[string]any `yaml:"tls"`
		} `yaml:"configs"`
	}
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&doc); err != nil {
		return []string{path + " cannot be read as YAML"}, strings.Fields(string(text))
	}
	for name, m := range doc.Mirrors {
		lines = append(lines, fmt.Sprintf("mirror of %s: %s", name, strings.Join(m.Endpoint, " ")))
	}
	for name, host := range doc.Configs {
		lines = append(lines, fmt.Sprintf("%s: login %t, settings of TLS %d", name, !host.Auth.IsZero(), len(host.TLS)))
		logins = append(logins, scalarValues(&host.Auth)...)
	}
	slices.Sort(lines)
	return lines, logins
}

func scalarValues(n *yaml.Node) []string {
	if n.Kind == yaml.ScalarNode {
		return []string{n.Value}
	}
	var out []string
	for i, child := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			out = append(out, scalarValues(child)...)
		}
	}
	return out
}

func (c *collector) collectConfig(_ context.Context, f *bugreport.Files) {
	var b strings.Builder
	fmt.Fprintf(&b, "# settings of %s; those that are not here have their defaults\n", c.command&^(config.ToolCommand|config.SnapshotCommand))
	for _, s := range c.shown {
		fmt.Fprintf(&b, "%s = %s   (%s)\n", s.Name, c.mask.Text(s.Value), s.Source)
	}
	for _, problem := range c.problems {
		fmt.Fprintf(&b, "! %s\n", c.mask.Text(problem))
	}
	f.Binary("settings.txt", []byte(b.String())) // each value is masked; behind their names all arguments would be
	f.Text("registries.txt", strings.Join(c.names, "\n")+"\n")
}

// run adds the output of a program.
func (c *collector) run(ctx context.Context, f *bugreport.Files, file string, args ...string) {
	f.Command(ctx, file, newCommand(args...))
}

// newCommand returns a command that runs a program of the machine. The program does not get this process' environment.
func newCommand(args ...string) *exec.Cmd {
	path := args[0]
	if !filepath.IsAbs(path) {
		path = firstOf("/usr/sbin/"+path, "/sbin/"+path, "/usr/bin/"+path, "/bin/"+path)
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	return cmd
}

// firstOf returns the first path that exists, or the last one.
func firstOf(paths ...string) string {
	for _, p := range paths {
		if exists(p) {
			return p
		}
	}
	return paths[len(paths)-1]
}

// copyFile adds the content of a file. What the kernel says of itself has no secrets, and names that look like some.
func (c *collector) copyFile(f *bugreport.Files, name, path string) {
	text, err := os.ReadFile(path)
	switch {
	case err != nil:
		f.Failed(name, err)
	case strings.HasPrefix(path, "/proc/"):
		f.Binary(name, text)
	default:
		f.Text(name, string(text))
	}
}
