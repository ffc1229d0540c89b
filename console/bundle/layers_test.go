// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"testing/fstest"
)

// TestLayersOfTheSourcesHold: the sources of the pages hold the order of layers.
func TestLayersOfTheSourcesHold(t *testing.T) {
	if err := checkLayersOf("../web/src"); err != nil {
		t.Error(err)
	}
}

// TestWrongImportsAreFound: an import of a higher layer, a circle and a folder of no layer are errors, however the file
// is imported.
func TestWrongImportsAreFound(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"names", "api/a.ts", `import { b } from "../views/b";`, "api/a imports views/b"},
		{"types", "model/a.ts", "import type {\n  B,\n} from \"../actions/b\";", "model/a imports actions/b"},
		{"when needed", "base/a.ts", `const b = () => import("../app/b");`, "base/a imports app/b"},
		{"for its effect", "base/a.ts", `import "../api/b";`, "base/a imports api/b"},
		{"exported again", "base/a.tsx", `export { b } from "../api/b";`, "base/a imports api/b"},
		{"a circle", "views/c.ts", `import { d } from "./d";`, "a circle of imports: views/"},
		{"a folder", "more/a.ts", ``, "more/a is in none of the folders"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkLayers(fstest.MapFS{
				c.file:       {Data: []byte(c.text)},
				"views/d.ts": {Data: []byte(`export const d = () => import("./c");`)},
				"main.tsx":   {Data: []byte(`import { d } from "./views/d";`)},
			})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, not %q", err, c.want)
			}
		})
	}
}
