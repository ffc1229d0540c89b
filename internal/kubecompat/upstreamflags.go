// SPDX-License-Identifier: Apache-2.0

// This file parses the extra arguments that an operator passes to an upstream component (name=value, as in
// --kube-scheduler-arg) with that component's own flag sets. It registers nothing globally.

package kubecompat

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"

	"github.com/coracle-k8s/coracle/internal/config"
)

// Refusal says why a flag of upstream is refused.
type Refusal struct {
	// Reason completes "--name is refused: ".
	Reason string
	// Harmless lists values that ask for the behaviour that is fixed here anyway. They are accepted and change nothing.
	Harmless []string
}

// Component describes the command line of an upstream component.
type Component struct {
	// Name is the component's name, such as kube-scheduler.
	Name string
	// Sets are the component's flag sets.
	Sets cliflag.NamedFlagSets
	// Refused are those of the component's flags that a single process for all components cannot honour.
	Refused map[string]Refusal
}

// Parse sets the flags that args name. Each is "name=value" or, for a switch, "name", with or without leading dashes.
// The error joins all mistakes.
func (c Component) Parse(args []string) error {
	fs := pflag.NewFlagSet(c.Name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, name := range slices.Sorted(maps.Keys(c.Sets.FlagSets)) {
		fs.AddFlagSet(c.Sets.FlagSets[name])
	}
	var errs []error
	for _, arg := range args {
		if err := c.set(fs, arg); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Cut returns an argument's flag name and its value, if one is given. It replaces "_" in the name by "-", as upstream's
// flags do.
func Cut(arg string) (name, value string, given bool) {
	name, value, given = strings.Cut(strings.TrimLeft(arg, "-"), "=")
	return strings.ReplaceAll(name, "_", "-"), value, given
}

func (c Component) set(fs *pflag.FlagSet, arg string) error {
	name, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	flag := fs.Lookup(name)
	if flag == nil {
		return fmt.Errorf("%s has no flag %q%s", c.Name, name, didYouMean(name, fs))
	}
	if !given {
		if flag.NoOptDefVal == "" {
			return fmt.Errorf("%s flag %q needs a value: write %s=VALUE", c.Name, flag.Name, flag.Name)
		}
		value = flag.NoOptDefVal
	}
	if r, refused := c.Refused[flag.Name]; refused {
		if slices.Contains(r.Harmless, value) {
			return nil
		}
		return fmt.Errorf("%s flag %q is refused: %s", c.Name, flag.Name, r.Reason)
	}
	if err := fs.Set(flag.Name, value); err != nil {
		return fmt.Errorf("%s flag %q: %w", c.Name, flag.Name, err)
	}
	return nil
}

func didYouMean(name string, fs *pflag.FlagSet) string {
	var all []string
	fs.VisitAll(func(f *pflag.Flag) { all = append(all, f.Name) })
	if best := config.Nearest(name, all); best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return ""
}
