// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Masterminds/sprig/v3"
	"github.com/spf13/cobra"
	"github.com/urfave/cli/v3"
	"helm.sh/helm/v4/pkg/chart/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/kubectl/pkg/util/templates"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// templateMethods names the methods that templates can call (packaging/overlay.sh).
const templateMethods = "../../../../packaging/template-methods.txt"

func TestEveryMethodThatATemplateMayCallIsLinked(t *testing.T) {
	c := callable{names: map[string]bool{}, seen: map[reflect.Type]bool{}}
	// What a chart is given, and what its functions return. A function that returns any passes on what it was given, or
	// makes a map, a list, a string or a number. A release is what `helm get all --template` is given.
	for _, v := range []any{&common.Capabilities{}, common.Values{}, time.Duration(0), &release.Release{}} {
		c.add(reflect.TypeOf(v))
	}
	for _, f := range sprig.TxtFuncMap() {
		for i := range reflect.TypeOf(f).NumOut() {
			c.add(reflect.TypeOf(f).Out(i))
		}
	}
	// Methods of .Files, whose type is not exported, and those that parts of ctr's help call, which are not exported.
	for _, name := range strings.Fields(`AsConfig AsSecrets Get GetBytes Glob Lines
		Flags FullName Names VisibleCategories VisibleFlags VisiblePersistentFlags`) {
		c.names[name] = true
	}
	for _, text := range []string{
		(&cobra.Command{}).UsageTemplate(), (&cobra.Command{}).HelpTemplate(), (&cobra.Command{}).VersionTemplate(),
		templates.MainHelpTemplate(), templates.MainUsageTemplate(), templates.OptionsHelpTemplate(), templates.OptionsUsageTemplate(),
		cli.RootCommandHelpTemplate, cli.CommandHelpTemplate, cli.SubcommandHelpTemplate,
	} {
		for _, m := range regexp.MustCompile(`\.([A-Z]\w*)`).FindAllStringSubmatch(text, -1) {
			c.names[m[1]] = true
		}
	}
	have := strings.Fields(string(testenv.Must(os.ReadFile(templateMethods))(t)))
	for name := range c.names {
		testenv.True(t, slices.Contains(have, name), "a template may call a method %s, which %s does not name", name, templateMethods)
	}
	for _, name := range have {
		testenv.True(t, c.names[name], "%s names %s, which no template calls", templateMethods, name)
	}
}

// callable collects the names of methods that a template can call on values of a type, and on what it reaches from
// them.
type callable struct {
	names map[string]bool
	seen  map[reflect.Type]bool
}

func (c callable) add(t reflect.Type) {
	if c.seen[t] {
		return
	}
	c.seen[t] = true
	methods := t
	if t.Kind() != reflect.Pointer && t.Kind() != reflect.Interface {
		methods = reflect.PointerTo(t) // an element that has an address has these too
	}
	for i := range methods.NumMethod() {
		m := methods.Method(i)
		if outs := m.Type.NumOut(); outs == 1 || outs == 2 && m.Type.Out(1) == reflect.TypeFor[error]() {
			c.names[m.Name] = true
			c.add(m.Type.Out(0))
		}
	}
	switch t.Kind() {
	case reflect.Map:
		c.add(t.Key())
		c.add(t.Elem())
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Chan:
		c.add(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() {
				c.add(f.Type)
			}
		}
	case reflect.Func:
		for i := range t.NumOut() {
			c.add(t.Out(i))
		}
	}
}
