// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/evanw/esbuild/pkg/api"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestBashReadsQuotedWordsBack: bash reads a word that the pages have quoted as it was. Older shells, which do not know
// $'…', read one word at least, and run nothing of it.
func TestBashReadsQuotedWordsBack(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		testenv.Missing(t, testenv.Node, "%v", err)
	}
	built := api.Build(api.BuildOptions{
		EntryPoints: []string{"../web/src/base/quote.ts"}, Bundle: true, Format: api.FormatIIFE, GlobalName: "shell", Target: api.ES2022,
	})
	testenv.Require(t, len(built.Errors) == 0, "%v", built.Errors)
	words := []string{
		"a", "", "=ls", "-n", "a b", "it's", `\`, `\'`, `'\''`, "$(touch canary)", "`touch canary`", "';touch canary;'", `\';touch canary;'`,
		"a\nb", "a\n", "\t", "\u202e", "\u200b", "é", "𝒳", "\U000e0041", "a\u00a0b", "~", "*", "{a,b}", "!!", "#", "&", "|", "\x01", "\x7f", "x\u0301", "\u2028'",
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	pieces := append([]string{"'", `\`, "$", "(", ")", "`", ";", "\n", "touch canary", "x41", "u", "U", "0", " ", `"`, "!", "&"}, words...)
	for range 2000 {
		var word strings.Builder
		for range 1 + rnd.IntN(6) {
			word.WriteString(pieces[rnd.IntN(len(pieces))])
		}
		words = append(words, word.String())
	}
	input := testenv.Must(json.Marshal(words))(t)
	cmd := exec.CommandContext(t.Context(), node, "-e", string(built.OutputFiles[0].Contents)+
		`;console.log(JSON.stringify(JSON.parse(require("fs").readFileSync(0)).map(shell.quote)))`)
	cmd.Stdin = strings.NewReader(string(input))
	output := testenv.Must(cmd.Output())(t)
	var quoted []string
	testenv.NoError(t, json.Unmarshal(output, &quoted))
	for _, shell := range []string{"bash", "dash", "busybox"} {
		t.Run(shell, func(t *testing.T) {
			program, err := exec.LookPath(shell)
			if err != nil {
				t.Skip(err) // this machine does not have the shell, so nothing can be shown of it
			}
			args := map[string][]string{"busybox": {"sh"}}[shell]
			dir := t.TempDir()
			// A word of several lines begins again with the next one: each command ends with its number.
			var script strings.Builder
			for i, word := range quoted {
				script.WriteString("printf '%s\\0' " + word + " " + string(rune('0'+i%10)) + " ''\n")
			}
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(script.String())
			cmd.Env = []string{"LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin"}
			out, err := cmd.CombinedOutput()
			testenv.NoError(t, err, "%s", out)
			read := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
			if len(read) != 3*len(words) {
				t.Fatalf("%d words were read as %d", len(words), len(read)/3)
			}
			for i, word := range words {
				if read[3*i+1] != string(rune('0'+i%10)) || read[3*i+2] != "" {
					t.Fatalf("after %q, quoted %s, the shell read %q", word, quoted[i], read[3*i:3*i+3])
				}
				if shell == "bash" && read[3*i] != word {
					t.Errorf("%q, quoted %s, was read as %q", word, quoted[i], read[3*i])
				}
			}
			if found, _ := filepath.Glob(filepath.Join(dir, "*")); len(found) > 0 {
				t.Errorf("a word has run: %s", found)
			}
		})
	}
}
