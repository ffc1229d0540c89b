// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes docs/configuration.md.
func WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString(docsHead)
	group := ""
	for _, s := range Table(nodeCommands) {
		if s.Group != group {
			group = s.Group
			fmt.Fprintf(&b, "\n### %s\n\n| flag and key | on | default | what it does |\n| --- | --- | --- | --- |\n", group)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", docsName(s), docsCommands(s), docsDefault(s), tableCell(s.Help+"."))
	}
	b.WriteString(docsTail)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the documentation: %w", err)
	}
	return nil
}

func docsName(s *Setting) string {
	head := "`--" + s.Name
	if s.Kind != Bool {
		head += " " + s.Holder
	}
	head += "`"
	if s.Short != "" {
		head += ", `-" + s.Short + "`"
	}
	if s.Kind.Repeats() {
		head += ", list"
	}
	return head
}

func docsCommands(s *Setting) string {
	switch s.Commands & nodeCommands {
	case ServerCommand:
		return "server"
	case AgentCommand:
		return "agent"
	}
	return "both"
}

func docsDefault(s *Setting) string {
	switch {
	case s.Computed != "":
		return tableCell(s.Computed)
	case s.Default == "":
		return ""
	}
	return "`" + s.Default + "`"
}

func tableCell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

const docsHead = `# Configuration

<!-- Generated from internal/config/table.go by "go generate ./internal/config"; edit that. -->

Coracle works without any configuration. What you may want to change can be given in three ways; the earlier beats the
later:

1. a flag: ` + "`coracle server --cluster-cidr 10.52.0.0/16`" + `
2. an environment variable, the flag's name in capitals with underscores after ` + "`CORACLE_`" + `:
   ` + "`CORACLE_CLUSTER_CIDR=10.52.0.0/16`" + `
3. a key of ` + "`/etc/coracle/config.yaml`" + `, the flag's name without the dashes: ` + "`cluster-cidr: 10.52.0.0/16`" + `

` + "```yaml" + `
# /etc/coracle/config.yaml
node-label:
  - room=cellar
  - disk=ssd
write-kubeconfig-mode: "0640"
kubelet-arg:
  - max-pods=60
` + "```" + `

- After the file, those in ` + "`/etc/coracle/config.yaml.d/`" + ` that end in ` + "`.yaml`" + ` are read, in alphabetical order; the later
  beats the earlier. A key with a ` + "`+`" + ` at its end, such as ` + "`node-label+:`" + `, adds to the list of the earlier files instead
  of replacing it.
- ` + "`--config FILE`" + ` or ` + "`CORACLE_CONFIG_FILE`" + ` names another file; its drop-ins are in ` + "`FILE.d/`" + `.
- Lists: repeat the flag or separate by commas, also in environment variables; write ` + "`\\,`" + ` for a comma inside an element.
  As flags, the ` + "`…-arg`" + ` settings are not split at commas, since their values contain them:
  ` + "`--kubelet-arg feature-gates=A=true,B=true`" + `.
- A list given in a stronger place replaces the weaker one whole: a ` + "`--node-label`" + ` flag makes those in the file void.
- Unknown flags and keys are errors, as are wrong values: nothing starts, the exit code is 2, and the message names the
  file and line. Unknown ` + "`CORACLE_…`" + ` variables are only warned about, since environments are shared.
- A change takes effect at the next start of coracle. Pods keep running meanwhile.

## Settings
`

const docsTail = `
## Files and folders

| path | what |
| --- | --- |
| ` + "`/etc/coracle/config.yaml`, `/etc/coracle/config.yaml.d/`" + ` | this configuration |
| ` + "`/etc/coracle/coracle.yaml`" + ` | kubeconfig of the cluster's administrator, written by the server |
| ` + "`/etc/coracle/registries.yaml`" + ` | mirrors of image registries and how to log in to them |
| ` + "`/var/lib/coracle/server/`" + ` | store, certificates, tokens: what a backup needs |
| ` + "`/var/lib/coracle/agent/`" + ` | images and containers of this node |
| ` + "`/var/lib/coracle/manifests/`" + ` | YAML here is applied to the cluster, and removed from it when it is removed here |
| ` + "`/var/lib/coracle/images/`" + ` | image archives here are imported |
| ` + "`/var/lib/coracle/bin/`" + ` | programs that the binary carries, unpacked |
| ` + "`/run/coracle/`" + ` | sockets and the pid file |

` + "`--data-dir`" + ` moves ` + "`/var/lib/coracle`" + `, and with it the run directory, to ` + "`run/`" + ` inside it.
`
