// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// Flags holds the values of one command's flags. [Register] makes it, and pflag fills it while parsing.
type Flags struct {
	values values
}

// Register adds the flags of a command to a flag set. Values are kept as text and checked when all of them are known,
// so that all errors are reported at once.
func Register(fs *pflag.FlagSet, c Command) *Flags {
	f := &Flags{values: values{}}
	for _, s := range Table(c) {
		f.add(fs, s)
	}
	return f
}

func (f *Flags) add(fs *pflag.FlagSet, s *Setting) {
	flag := fs.VarPF(&flagValue{flags: f, setting: s}, s.Name, s.Short, s.Help)
	if s.Kind == Bool {
		flag.NoOptDefVal = "true"
	}
}

// Set sets a flag as if the user had typed it.
func (f *Flags) Set(name, text string) { f.set(Lookup(name), text) }

func (f *Flags) set(s *Setting, text string) {
	src := Source{Flag: s.Name}
	switch s.Kind {
	case List:
		if f.values[s.Name] == nil {
			f.values[s.Name] = []item{} // mark it as given, also when the list is empty
		}
		for _, t := range splitList(text) {
			f.values[s.Name] = append(f.values[s.Name], item{t, src})
		}
	case Args:
		f.values[s.Name] = append(f.values[s.Name], item{text, src})
	default:
		f.values[s.Name] = []item{{text, src}}
	}
}

// flagValue is the pflag.Value of one setting.
type flagValue struct {
	flags   *Flags
	setting *Setting
}

func (v *flagValue) String() string {
	if v.setting == nil { // pflag compares defaults with a zero value
		return ""
	}
	items, ok := v.flags.values[v.setting.Name]
	if !ok {
		return v.setting.Default
	}
	return strings.Join(convert.Slice(items, func(it item) string { return it.text }), ",")
}

func (v *flagValue) Set(text string) error {
	v.flags.set(v.setting, text)
	return nil
}

func (v *flagValue) Type() string {
	if v.setting.Kind == Bool {
		return "bool"
	}
	return v.setting.Holder
}

// agentsOwn is a flag that only agents have. It shows whether a flag set is an agent's.
const agentsOwn = "lb-server-port"

// ExplainFlagError replaces pflag's error for an unknown flag by one that names the nearest flag of the set.
func ExplainFlagError(err error, fs *pflag.FlagSet) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	name := unknown.GetSpecifiedName()
	if shorts := unknown.GetSpecifiedShortnames(); shorts != "" {
		// "-data-dir" with one dash reads as several short flags.
		if fs.Lookup(name) == nil && len(shorts) > 1 {
			if fl := fs.Lookup(strings.SplitN(shorts, "=", 2)[0]); fl != nil {
				return Problems{"unknown flag -" + shorts + "; did you mean --" + shorts + "?"}
			}
		}
		return Problems{"unknown flag -" + name}
	}
	var candidates []string
	fs.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			candidates = append(candidates, f.Name)
		}
	})
	if why := k3sOfAgents[name]; why != "" && fs.Lookup(agentsOwn) != nil {
		return Problems{"unknown flag --" + name + "; coracle does not have this setting of k3s' agents: " + why}
	}
	if s := Lookup(name); s != nil && s.Commands&nodeCommands != 0 {
		return Problems{"unknown flag --" + name + ": it is a flag of " + s.Commands.String()}
	}
	if hint := k3sHint(name); hint != "" {
		return Problems{"unknown flag --" + name + hint}
	}
	return Problems{"unknown flag --" + name + didYouMean(name, "--", candidates)}
}

// locationFlags are the settings that select the coracle on this machine to work on.
var locationFlags = []string{"config", "data-dir", "run-dir"}

// RegisterLocations adds only the flags that select the coracle on this machine to work on.
func RegisterLocations(fs *pflag.FlagSet) *Flags {
	f := &Flags{values: values{}}
	for _, name := range locationFlags {
		f.add(fs, Lookup(name))
	}
	return f
}

// RegisterSome adds the flags of RegisterLocations and the flags with the given names.
func RegisterSome(fs *pflag.FlagSet, names ...string) *Flags {
	f := RegisterLocations(fs)
	for _, name := range names {
		f.add(fs, Lookup(name))
	}
	return f
}

// RegisterFor adds all flags of the command c to another command, which only reads c's settings. Its help hides the
// flags that are not among locations. The short name reserved is not added, because the other command uses it itself.
func RegisterFor(fs *pflag.FlagSet, c Command, reserved string) *Flags {
	f := &Flags{values: values{}}
	for _, s := range Table(c) {
		own := *s
		if own.Short == reserved {
			own.Short = ""
		}
		f.add(fs, &own)
		fs.Lookup(s.Name).Hidden = !slices.Contains(locationFlags, s.Name)
	}
	return f
}
