// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Flags are the values that one command's flags were given. [Register] fills it while pflag parses.
type Flags struct {
	given values
}

// Register adds the flags of a command to a flag set. Values are kept as text and checked when everything is
// known, so that all complaints come together.
func Register(fs *pflag.FlagSet, c Command) *Flags {
	f := &Flags{given: values{}}
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

// Set gives a flag a value as if the user had typed it.
func (f *Flags) Set(name, text string) { f.set(Lookup(name), text) }

func (f *Flags) set(s *Setting, text string) {
	src := Source{Flag: s.Name}
	switch s.Kind {
	case List:
		if f.given[s.Name] == nil {
			f.given[s.Name] = []item{} // given, perhaps as the empty list
		}
		for _, t := range splitList(text) {
			f.given[s.Name] = append(f.given[s.Name], item{t, src})
		}
	case Args:
		f.given[s.Name] = append(f.given[s.Name], item{text, src})
	default:
		f.given[s.Name] = []item{{text, src}}
	}
}

// flagValue is the pflag.Value of one setting.
type flagValue struct {
	flags   *Flags
	setting *Setting
}

func (v *flagValue) String() string {
	if v.setting == nil { // pflag makes a zero value to compare defaults
		return ""
	}
	items, ok := v.flags.given[v.setting.Name]
	if !ok {
		return v.setting.Default
	}
	texts := make([]string, len(items))
	for i, it := range items {
		texts[i] = it.text
	}
	return strings.Join(texts, ",")
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

// agentsOwn is a flag that agents have and servers have not.
const agentsOwn = "lb-server-port"

// ExplainFlagError turns pflag's complaint into one that names the nearest flag of the set.
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

// locations are the settings that say which coracle on this machine a command is about.
var locations = []string{"config", "data-dir", "run-dir"}

// RegisterLocations adds only the flags that say which coracle on this machine a command is about.
func RegisterLocations(fs *pflag.FlagSet) *Flags {
	f := &Flags{given: values{}}
	for _, name := range locations {
		f.add(fs, Lookup(name))
	}
	return f
}

// RegisterSome adds the flags that say which coracle a command is about, and the ones of the given names.
func RegisterSome(fs *pflag.FlagSet, names ...string) *Flags {
	f := RegisterLocations(fs)
	for _, name := range names {
		f.add(fs, Lookup(name))
	}
	return f
}

// RegisterFor adds all flags of a command c to one that only reads c's settings. Those that do not say which coracle is
// meant are left out of its help, and reserved is a short name that it has a use of its own for.
func RegisterFor(fs *pflag.FlagSet, c Command, reserved string) *Flags {
	f := &Flags{given: values{}}
	for _, s := range Table(c) {
		own := *s
		if own.Short == reserved {
			own.Short = ""
		}
		f.add(fs, &own)
		fs.Lookup(s.Name).Hidden = !slices.Contains(locations, s.Name)
	}
	return f
}
