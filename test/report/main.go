// SPDX-License-Identifier: Apache-2.0

// Command report runs `go test -json …` and prints what a reader wants: a line for each package, everything that a
// failed test said, each skipped test with its reason, which tests took the longest, and how many ran. It fails when
// the command does, when no test ran, and when -run asks for parts of tests and no part of any ran: their test itself
// passes then.
//
//	report [-v] go test -json ./... [--and go test -json …]
//
// Commands with --and between them run side by side.
//
// With -v every line is printed as it comes. CORACLE_TEST_NOTE names a file that the last line goes to as well; each
// further line of that file is a test that took long: its seconds, its package and its name, with tabs between them.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// event is one line of test2json (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// counter reads events and remembers what a report needs.
type counter struct {
	out     io.Writer
	verbose bool

	passed, failed, skipped, packages, failedPackages int
	subtests                                          int                 // those of them that are subtests
	output                                            map[string][]string // package and test → what it said, until it ends
	skips                                             []string
	failures                                          []string
	slow                                              []event // ends of whole tests that took slowFrom and more
}

// The seconds from which on a test is listed at the end, the slowest first, and how many are listed at most.
const (
	slowFrom = 5
	slowest  = 10
)

func main() {
	verbose := flag.Bool("v", false, "print every line as it comes")
	flag.Parse()
	os.Exit(run(*verbose, flag.Args()))
}

func run(verbose bool, args []string) int {
	start := time.Now()
	c := &counter{}
	var running sync.WaitGroup
	commands := commands(args)
	counters, errs := make([]counter, len(commands)), make([]error, len(commands))
	for i, command := range commands {
		counters[i] = counter{out: os.Stdout, verbose: verbose, output: map[string][]string{}}
		running.Go(func() { errs[i] = counters[i].run(command) })
	}
	running.Wait()
	for _, of := range counters {
		c.add(of)
	}
	err := errors.Join(errs...)
	fmt.Printf("%s, %v\n", c.summary(), time.Since(start).Round(time.Second))
	if note := os.Getenv("CORACLE_TEST_NOTE"); note != "" {
		if err := os.WriteFile(note, []byte(c.note()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "report:", err)
			return 1
		}
	}
	switch {
	case err != nil || c.failed+c.failedPackages > 0:
		fmt.Fprintln(os.Stderr, "report: the tests failed:", err)
		return 1
	case c.passed == 0:
		fmt.Fprintln(os.Stderr, "report: no test ran")
		return 1
	case c.subtests == 0 && strings.Contains(pattern(args), "/"):
		fmt.Fprintf(os.Stderr, "report: -run %q asks for parts of tests, and none ran (where make passes it on, a $ has to be written $$)\n", pattern(args))
		return 1
	}
	return 0
}

// commands are what stands between "--and".
func commands(args []string) (all [][]string) {
	for {
		i := slices.Index(args, "--and")
		if i < 0 {
			return append(all, args)
		}
		all, args = append(all, args[:i]), args[i+1:]
	}
}

// run runs a command and takes in its events.
func (c *counter) run(command []string) error {
	if len(command) == 0 {
		return errors.New("a command is missing")
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	readErr := c.read(out)
	return errors.Join(readErr, cmd.Wait())
}

// add counts what another counter has.
func (c *counter) add(of counter) {
	c.passed, c.failed, c.skipped = c.passed+of.passed, c.failed+of.failed, c.skipped+of.skipped
	c.packages, c.failedPackages = c.packages+of.packages, c.failedPackages+of.failedPackages
	c.subtests += of.subtests
	c.skips, c.failures, c.slow = append(c.skips, of.skips...), append(c.failures, of.failures...), append(c.slow, of.slow...)
}

// pattern is what a command of `go test` has as -run.
func pattern(args []string) string {
	for i, a := range args {
		name, value, given := strings.Cut(strings.TrimPrefix(a, "-"), "=")
		switch {
		case strings.TrimPrefix(name, "-") != "run":
		case given:
			return value
		case i+1 < len(args):
			return args[i+1]
		}
	}
	return ""
}

// read takes in events until the command ends.
func (c *counter) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil {
				c.take(e)
			} else {
				fmt.Fprint(c.out, string(line)) // not from a test: go's own words
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *counter) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(c.out, e.Output)
	case "output":
		if c.verbose {
			fmt.Fprint(c.out, e.Output)
		}
		c.output[key] = append(c.output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			c.endPackage(e)
		} else {
			c.endTest(e)
		}
		delete(c.output, key)
	}
}

func (c *counter) endTest(e event) {
	said := c.output[e.Package+" "+e.Test]
	if strings.Contains(e.Test, "/") {
		c.subtests++
	} else if e.Elapsed >= slowFrom {
		c.slow = append(c.slow, e)
	}
	switch e.Action {
	case "pass":
		c.passed++
	case "fail":
		c.failed++
		c.failures = append(c.failures, fmt.Sprintf("failed: %s %s: %s", path.Base(e.Package), e.Test, messages(said)))
		if !c.verbose {
			fmt.Fprint(c.out, strings.Join(said, ""))
		}
	case "skip":
		c.skipped++
		c.skips = append(c.skips, fmt.Sprintf("skipped: %s %s: %s", path.Base(e.Package), e.Test, reason(said)))
	}
}

// reason is what a skipped test said, without the lines that every test prints.
func reason(said []string) string {
	said = slices.DeleteFunc(slices.Clone(said), func(line string) bool {
		line = strings.TrimSpace(line)
		return strings.HasPrefix(line, "===") || strings.HasPrefix(line, "--- SKIP")
	})
	return strings.TrimSpace(strings.Join(said, ""))
}

// messageStart is how package testing begins what a test prints: its file and line.
var messageStart = regexp.MustCompile(`^\s+[\w.-]+\.go:\d+: `)

// The most messages of a failed test that its line at the end has, and the most bytes of each.
const (
	lastMessages = 6
	messageWidth = 300
)

// messages are the first lines of what a failed test printed last: all of it may be thousands of lines.
func messages(said []string) string {
	var starts []string
	for line := range strings.Lines(strings.Join(said, "")) {
		if messageStart.MatchString(line) {
			line = strings.TrimSpace(line)
			starts = append(starts, line[:min(len(line), messageWidth)])
		}
	}
	if len(starts) == 0 {
		return "it printed no message of its own"
	}
	return strings.Join(starts[max(0, len(starts)-lastMessages):], "\n  ")
}

func (c *counter) endPackage(e event) {
	said := c.output[e.Package+" "]
	if e.Action == "skip" { // it has no tests
		return
	}
	c.packages++
	if e.Action == "fail" {
		c.failedPackages++
		if !c.verbose {
			c.unfinished(e.Package)
			fmt.Fprint(c.out, strings.Join(said, ""))
		}
	}
	cached := ""
	if slices.ContainsFunc(said, func(s string) bool { return strings.HasSuffix(strings.TrimSpace(s), "(cached)") }) {
		cached = ", as before (cached)"
	}
	fmt.Fprintf(c.out, "%-4s %s %.1f s%s\n", e.Action, e.Package, e.Elapsed, cached)
}

// unfinished prints what those tests said that had not ended when their process did: the last line says why it ended.
func (c *counter) unfinished(pkg string) {
	for _, key := range slices.Sorted(maps.Keys(c.output)) {
		if p, test, _ := strings.Cut(key, " "); p == pkg && test != "" {
			fmt.Fprintf(c.out, "%s did not end; it said:\n%s", test, strings.Join(c.output[key], ""))
			delete(c.output, key)
		}
	}
}

func (c *counter) verdict() string {
	return fmt.Sprintf("%d tests passed, %d failed, %d skipped in %d packages", c.passed, c.failed, c.skipped, c.packages)
}

func (c *counter) summary() string {
	lines := slices.Clone(c.skips)
	for _, e := range c.slowest() {
		lines = append(lines, fmt.Sprintf("slow: %s %s %.0f s", path.Base(e.Package), e.Test, e.Elapsed))
	}
	lines = append(lines, c.failures...) // late, for a reader who sees only the end
	return strings.Join(append(lines, c.verdict()), "\n")
}

// slowest returns the tests that took the longest, the slowest first.
func (c *counter) slowest() []event {
	all := slices.SortedStableFunc(slices.Values(c.slow), func(a, b event) int { return cmp.Compare(b.Elapsed, a.Elapsed) })
	return all[:min(len(all), slowest)]
}

// note is what packaging/steps.sh reads: the verdict, and the slowest tests a line each.
func (c *counter) note() string {
	note := c.verdict() + "\n"
	for _, e := range c.slowest() {
		note += fmt.Sprintf("%.1f\t%s\t%s\n", e.Elapsed, path.Base(e.Package), e.Test)
	}
	return note
}
