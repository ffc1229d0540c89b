// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/recorder"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// CustomConfigMap, in kube-system, holds the operator's configuration, as with k3s: keys that end in .override extend
// the cluster's server block, and those that end in .server are separate blocks.
const CustomConfigMap = clustersettings.DNS

// partCustom is the status line about sections that are not in force. It does not exist until there is one.
const partCustom = "cluster dns configuration"

const overrideSuffix, serverSuffix = ".override", ".server"

// customConfig is the operator's configuration: the text of each section by its name in messages.
type customConfig map[string]string

// customFiles reads the operator's files. A missing folder has none.
func customFiles(dir string) (customConfig, error) {
	out := customConfig{}
	if dir == "" {
		return out, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return out, fmt.Errorf("reading the operator's DNS configuration: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !isCustom(path) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return out, fmt.Errorf("reading the operator's DNS configuration: %w", err)
		}
		out[path] = string(text)
	}
	return out, nil
}

func isCustom(name string) bool {
	return strings.HasSuffix(name, overrideSuffix) || strings.HasSuffix(name, serverSuffix)
}

// blocks are what the operator's configuration adds to the Corefile.
type blocks struct {
	// main is the text of the directives of the cluster's block by their names. Each section's text begins with a line
	// of its own: two sections may have the same directive in lines of the same number.
	main        map[string]string
	otherBlocks []string // whole blocks
}

// directives are the directives of a block, each with all of its lines.
type directives map[string][]caddyfile.Token

// parseSection parses one section of the configuration. Server blocks get the port and the addresses of the cluster's
// DNS: the Service leads to no others, and port 53 of the host is not ours.
func (b *blocks) parseSection(o Options, name, text string) error {
	if err := checkBraces(name, text); err != nil {
		return err
	}
	if strings.HasSuffix(name, overrideSuffix) {
		parsed, err := caddyfile.Parse(name, strings.NewReader(".:0 {\n"+text+"\n}\n"), nil)
		if err != nil {
			return err
		}
		if len(parsed) != 1 {
			return fmt.Errorf("%s holds server blocks: those belong under a key that ends in %s", name, serverSuffix)
		}
		if err := checkAllowed(name, parsed[0]); err != nil {
			return err
		}
		for d, tokens := range parsed[0].Tokens {
			b.main[d] += directives{d: tokens}.text()
		}
		return nil
	}
	parsed, err := caddyfile.Parse(name, strings.NewReader(text), nil)
	if err != nil {
		return err
	}
	for _, block := range parsed {
		if err := checkAllowed(name, block); err != nil {
			return err
		}
		keys := convert.Slice(block.Keys, onOurPort)
		all := directives(block.Tokens)
		head := []string{"    " + clientsLine(o)}
		if all["bind"] == nil {
			head = append(head, "    bind "+joinStrings(o.Addresses))
		}
		b.otherBlocks = append(b.otherBlocks, strings.Join(keys, ", ")+" {\n"+strings.Join(head, "\n")+"\n"+all.text()+"}\n")
	}
	return nil
}

// checkAllowed returns an error for a plugin that the operator may not use. CoreDNS' kubernetes plugin is linked in.
// Once it is set up, even to check a configuration, it takes over the process' log.
func checkAllowed(name string, block caddyfile.ServerBlock) error {
	for _, d := range []string{"kubernetes", directive, clientsDirective, connectionsDirective} {
		if tokens := block.Tokens[d]; len(tokens) > 0 {
			return fmt.Errorf("%s:%d: the plugin %s cannot be used here: the names of the cluster are answered without it", name,
				tokens[0].Line, d)
		}
	}
	return nil
}

// checkBraces returns an error where a brace is missing or one is too many. CoreDNS's parser takes the end of an inner
// block for the end of both.
func checkBraces(name, text string) error {
	d := caddyfile.NewDispenser(name, strings.NewReader(text))
	var open []int // the lines of open braces
	for d.Next() {
		switch d.Val() {
		case "{":
			open = append(open, d.Line())
		case "}":
			if len(open) == 0 {
				return fmt.Errorf("%s:%d: there is nothing that this } ends", name, d.Line())
			}
			open = open[:len(open)-1]
		}
	}
	if n := len(open); n > 0 {
		return fmt.Errorf("%s:%d: the { has no }", name, open[n-1])
	}
	return nil
}

// onOurPort returns the key of a server block with our port, if it has no port or 53. Keys for other protocols are
// returned unchanged.
func onOurPort(key string) string {
	rest, _ := strings.CutPrefix(key, "dns://")
	if strings.Contains(rest, "://") {
		return key
	}
	if zone, ok := strings.CutSuffix(rest, ":53"); ok {
		rest = zone
	}
	if i := strings.LastIndex(rest, ":"); i >= 0 && !strings.Contains(rest[i:], "]") && !strings.Contains(rest[i:], "/") &&
		strings.Count(rest, ":") == 1 {
		return rest
	}
	return fmt.Sprintf("%s:%d", rest, Port)
}

// text writes the directives in the syntax of a Corefile.
func (d directives) text() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d)) {
		at := caddyfile.Token{Line: -1}
		for _, t := range d[name] {
			switch {
			case at.Line == -1:
				b.WriteString("    ")
			case t.Line != at.Line || t.File != at.File:
				b.WriteString("\n    ")
			default:
				b.WriteString(" ")
			}
			at = t
			if t.Text == "" || strings.ContainsAny(t.Text, " \t\r\n\"#") {
				b.WriteString(`"` + strings.ReplaceAll(t.Text, `"`, `\"`) + `"`)
			} else {
				b.WriteString(t.Text)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// selectWorkingSections returns the sections of a configuration that work by themselves. For one that does not, the
// last working version is kept, and errs has the error by name.
func (s *Server) selectWorkingSections(have, now customConfig) (out customConfig, errs map[string]error) {
	out, errs = customConfig{}, map[string]error{}
	for name, text := range now {
		if !isCustom(name) {
			continue
		}
		before, ok := have[name]
		if !ok || before != text {
			if err := s.checkStart(&starting{anySocket: true}, nil, customConfig{name: text}); err != nil {
				if errs[name] = err; !ok {
					continue
				}
				text = before
			}
		}
		out[name] = text
	}
	return out, errs
}

// compatible returns the sections that work with one another: the files first and then the keys of the ConfigMap, each
// in the order of their names. A section that does not work with those before it is left out, and errs has the error by
// name. The order does not depend on what is in force now, so that a restart changes nothing. err means that CoreDNS
// cannot start with no section either.
func (s *Server) compatible(running *caddy.Instance, resolvers []netip.AddrPort) (out customConfig, errs map[string]error, err error) {
	all := maps.Clone(s.fileSections)
	maps.Copy(all, s.custom)
	if s.checkStart(newStarting(running), resolvers, all) == nil {
		return all, nil, nil
	}
	out, errs = customConfig{}, map[string]error{}
	if err := s.checkStart(newStarting(running), resolvers, out); err != nil {
		return nil, nil, err
	}
	for _, name := range slices.Concat(slices.Sorted(maps.Keys(s.fileSections)), slices.Sorted(maps.Keys(s.custom))) {
		out[name] = all[name]
		if err := s.checkStart(newStarting(running), resolvers, out); err != nil {
			errs[name] = err
			delete(out, name)
		}
	}
	return out, errs, nil
}

// report reports which sections are not in force: on the status line, in the log and, for a key of the ConfigMap, as an
// Event. It does so when the sections or their errors have changed.
func (s *Server) report(w *customWatch, refused map[string]error) {
	now := map[string]string{}
	for name, err := range s.invalidSections {
		now[name] = err.Error()
	}
	for name, err := range refused {
		now[name] = err.Error()
	}
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: metav1.NamespaceSystem, Name: CustomConfigMap}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(now)) {
		lines = append(lines, name+": "+now[name])
		if s.reportedSections[name] == now[name] {
			continue
		}
		s.log.Error(errors.New(now[name]), "A section of the operator's DNS configuration is not used; all others are", "configmap",
			CustomConfigMap, "section", name)
		if !filepath.IsAbs(name) {
			w.events.Eventf(about, corev1.EventTypeWarning, "BadDNSConfiguration", "the key %s is not used: %s", name, now[name])
		}
	}
	if len(now) > 0 {
		s.o.Board.Part(partCustom).Set(status.Degraded, "not used is, while all other keys and files apply, "+strings.Join(lines, "; ")+
			". Mend it in the ConfigMap "+CustomConfigMap+" of kube-system, or in the file")
	} else if len(s.reportedSections) > 0 {
		s.o.Board.Part(partCustom).Set(status.Running, "all keys and files are used again")
	}
	s.reportedSections = now
}

// render combines working sections, in the order of their names.
func (s *Server) render(sections customConfig) (blocks, error) {
	b := blocks{main: map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(sections)) {
		if err := b.parseSection(s.o, name, sections[name]); err != nil {
			return b, err
		}
	}
	return b, nil
}

// customWatch receives each change of CustomConfigMap, and writes events about it.
type customWatch struct {
	events  record.EventRecorder
	changes chan customConfig // capacity 1: only the newest content
	done    chan struct{}
}

// watchCustom starts a goroutine that ends with ctx. close waits for it.
func watchCustom(ctx context.Context, o Options) *customWatch {
	w := &customWatch{
		events: recorder.New(ctx, o.Client, "coracle-dns"), changes: make(chan customConfig, 1), done: make(chan struct{}),
	}
	go func() {
		defer close(w.done)
		o.Settings.Follow(ctx, CustomConfigMap, func(d clustersettings.Data) { timers.Replace(w.changes, customConfig(d)) })
	}()
	return w
}

func (w *customWatch) close() { <-w.done }
