// SPDX-License-Identifier: Apache-2.0

// This file reads the extra arguments that an operator passes through to an upstream component
// (name=value, as in --kube-scheduler-arg) into that component's own flag sets. It registers nothing globally.

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

// Refusal says why a flag of upstream's has no meaning here.
type Refusal struct {
	// Reason completes "--name is refused: ".
	Reason string
	// Harmless lists values that ask for what is the case anyway; they are accepted and change nothing.
	Harmless []string
}

// Component is an upstream component's command line.
type Component struct {
	// Name is the component's, such as kube-scheduler.
	Name string
	// Sets are its flags.
	Sets cliflag.NamedFlagSets
	// Refused are those of its flags that one process holding everything cannot honour.
	Refused map[string]Refusal
}

// Parse applies args, each "name=value" or, for a switch, "name"; leading dashes do no harm. All mistakes are
// reported at once.
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

// Cut returns an argument's name as upstream's flags have it, which may be written with "_" for "-", and its value if
// one is given.
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
