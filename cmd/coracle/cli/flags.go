// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mitchellh/go-wordwrap"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/coracle-k8s/coracle/internal/config"
)

// addSettings gives a command the flags of the settings table, with completion, and with help by group.
func addSettings(cmd *cobra.Command, c config.Command) *config.Flags {
	f := config.Register(cmd.Flags(), c)
	cmd.Flags().SortFlags = false
	completeSettings(cmd, config.Table(c))
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		settingsUsage(cmd.OutOrStderr(), cmd, c)
		return nil
	})
	return f
}

// addLocations gives a command the flags that select the coracle to work on.
func addLocations(cmd *cobra.Command) *config.Flags {
	f := config.RegisterLocations(cmd.Flags())
	cmd.Flags().SortFlags = false
	completeSettings(cmd, config.Table(config.ToolCommand))
	return f
}

// addSome gives a command the flags of addLocations and the flags with the given names.
func addSome(cmd *cobra.Command, names ...string) *config.Flags {
	f := config.RegisterSome(cmd.Flags(), names...)
	cmd.Flags().SortFlags = false
	completeSettings(cmd, config.Table(config.SnapshotCommand))
	return f
}

func completeSettings(cmd *cobra.Command, settings []*config.Setting) {
	for _, s := range settings {
		if cmd.Flags().Lookup(s.Name) == nil {
			continue
		}
		complete := cobra.NoFileCompletions
		switch {
		case len(s.Values) > 0:
			complete = cobra.FixedCompletions(s.Values, cobra.ShellCompDirectiveNoFileComp)
		case s.Dirs:
			complete = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
		case s.Files:
			complete = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
		}
		if err := cmd.RegisterFlagCompletionFunc(s.Name, complete); err != nil {
			panic(fmt.Sprintf("flag --%s is in the table twice: %v", s.Name, err)) // a mistake in the table; any test finds it
		}
	}
}

// settingsUsage prints the flags under the group headings of the table.
func settingsUsage(w io.Writer, cmd *cobra.Command, c config.Command) {
	fmt.Fprintf(w, "Usage:\n  %s [flags]\n", cmd.CommandPath())
	group := ""
	for _, s := range config.Table(c) {
		if s.Group != group {
			group = s.Group
			fmt.Fprintf(w, "\n%s:\n", group)
		}
		fmt.Fprintf(w, "  %s\n", flagHead(s))
		help := wordwrap.WrapString(s.Help+"."+defaultNote(s), 94)
		fmt.Fprintf(w, "      %s\n", strings.ReplaceAll(help, "\n", "\n      "))
	}
	fmt.Fprintf(w, "\nOther:\n  -h, --help\n      Show this text.\n")
	fmt.Fprintf(w, "\nEach flag is also an environment variable, CORACLE_ and its name in capitals with underscores, and a key of\n%s. A "+
		"flag beats a variable, a variable beats the file.\n", config.DefaultConfigFile)
}

func flagHead(s *config.Setting) string {
	head := "--" + s.Name
	if s.Short != "" && s.Short != s.Name {
		head = "-" + s.Short + ", " + head
	}
	if s.Short == s.Name {
		head = "-" + s.Name + ", --" + s.Name
	}
	if s.Kind != config.Bool {
		head += " " + s.Holder
	}
	if s.Kind.Repeats() {
		head += " ..."
	}
	return head
}

func defaultNote(s *config.Setting) string {
	switch {
	case s.Computed != "":
		return " Default: " + s.Computed + "."
	case s.Default != "" && (s.Kind != config.Bool || s.Default != "false"):
		return " Default: " + s.Default + "."
	}
	return ""
}

// outputFlag is the flag -o. It has a fixed set of forms, of which the first is the default.
type outputFlag struct {
	value string
	forms []string
}

func addOutput(cmd *cobra.Command, forms ...string) *outputFlag {
	o := &outputFlag{forms[0], forms}
	cmd.Flags().VarP(o, "output", "o", "Form of the output: "+strings.Join(forms, ", "))
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(forms, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag was added in the lines above
	}
	return o
}

var _ pflag.Value = (*outputFlag)(nil)

func (o *outputFlag) String() string { return o.value }
func (o *outputFlag) Type() string   { return "FORM" }
func (o *outputFlag) Set(v string) error {
	if !slices.Contains(o.forms, v) {
		return fmt.Errorf("there is no such form; choose one of: %s", strings.Join(o.forms, ", "))
	}
	o.value = v
	return nil
}
