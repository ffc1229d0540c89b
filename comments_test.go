// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// commentColumns is how wide a comment may be, a tab counting as four columns.
const commentColumns = 120

// prose is a line that is a comment of more than one word. Indented text in comments, such as a table, is left out.
var prose = regexp.MustCompile(`^\t*// \S+ `)

func TestCommentsAreNotWide(t *testing.T) {
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build"):
			return filepath.SkipDir
		case d.IsDir(), filepath.Ext(path) != ".go":
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 16<<20)
		for n := 1; lines.Scan(); n++ {
			line := lines.Text()
			width := utf8.RuneCountInString(line) + 3*(len(line)-len(strings.TrimLeft(line, "\t")))
			if width > commentColumns && prose.MatchString(line) {
				t.Errorf("%s:%d: the comment is %d columns wide, at most %d", path, n, width, commentColumns)
			}
		}
		return lines.Err()
	}))
}
