// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// stream is what `go test -json` says about a package with a test of each kind.
const stream = `{"Action":"start","Package":"m/p"}
{"Action":"run","Package":"m/p","Test":"TestGood"}
{"Action":"output","Package":"m/p","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"m/p","Test":"TestGood","Output":"    a_test.go:5: chatter\n"}
{"Action":"pass","Package":"m/p","Test":"TestGood","Elapsed":0}
{"Action":"output","Package":"m/p","Test":"TestBad","Output":"    a_test.go:9: it broke\n"}
{"Action":"fail","Package":"m/p","Test":"TestBad","Elapsed":0}
{"Action":"output","Package":"m/p","Test":"TestNot","Output":"=== RUN   TestNot\n"}
{"Action":"output","Package":"m/p","Test":"TestNot","Output":"    a_test.go:12: needs a moon\n"}
{"Action":"output","Package":"m/p","Test":"TestNot","Output":"--- SKIP: TestNot (0.00s)\n"}
{"Action":"skip","Package":"m/p","Test":"TestNot","Elapsed":0}
{"Action":"pass","Package":"m/p","Test":"TestLong/part","Elapsed":59}
{"Action":"pass","Package":"m/p","Test":"TestLong","Elapsed":60.2}
{"Action":"pass","Package":"m/p","Test":"TestLonger","Elapsed":301.4}
{"Action":"pass","Package":"m/p","Test":"TestShort","Elapsed":4.9}
{"Action":"run","Package":"m/p","Test":"TestCut"}
{"Action":"output","Package":"m/p","Test":"TestCut","Output":"F1120 fatal: the process ends here\n"}
{"Action":"fail","Package":"m/p","Elapsed":1.5}
{"Action":"skip","Package":"m/empty","Elapsed":0}
`

func TestReportCountsPassedFailedAndSkipped(t *testing.T) {
	var out strings.Builder
	c := &counter{out: &out, output: map[string][]string{}}
	testenv.NoError(t, c.read(strings.NewReader(stream)))
	for _, want := range []string{"it broke", "TestCut did not end", "the process ends here", "fail m/p 1.5 s"} {
		testenv.Contains(t, out.String(), want, "")
	}
	testenv.False(t, strings.Contains(out.String(), "chatter"), "what a good test said is printed:\n%s", out.String())
	want := "skipped: p TestNot: a_test.go:12: needs a moon\nslow: p TestLonger 301 s\nslow: p TestLong 60 s\n" +
		"failed: p TestBad: a_test.go:9: it broke\n5 tests passed, 1 failed, 1 skipped in 1 packages"
	testenv.Equal(t, c.summary(), want, "")
	want = "5 tests passed, 1 failed, 1 skipped in 1 packages\n301.4\tp\tTestLonger\n60.2\tp\tTestLong\n"
	testenv.Equal(t, c.note(), want, "the note is")
}

// TestReportFailsWithCommandOrWithoutTests: a command that fails, and one without tests, make the report fail; the note
// says what ran.
func TestReportFailsWithCommandOrWithoutTests(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	t.Setenv("CORACLE_TEST_NOTE", note)
	const good = `{"Action":"pass","Package":"m/p","Test":"T"}`
	for script, want := range map[string]int{
		"echo '" + good + "'":         0,
		"echo '" + good + "'; exit 3": 1,
		"true":                        1,
		`echo '{"Action":"fail","Package":"m/p","Test":"T"}'`: 1,
	} {
		testenv.Equal(t, run(false, []string{"sh", "-c", script}), want, "%s:", script)
	}
	testenv.Contains(t, string(testenv.Must(os.ReadFile(note))(t)), "tests passed", "the note is")
}

// TestCommandsSideBySide: all of them run at the same time, and each can make the report fail.
func TestCommandsSideBySide(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	t.Setenv("CORACLE_TEST_NOTE", note)
	fifo := filepath.Join(t.TempDir(), "fifo")
	const good = `echo '{"Action":"pass","Package":"m/p","Test":"T"}'`
	side := func(second string) int {
		return run(false, []string{"sh", "-c", good + "; cat " + fifo, "--and", "sh", "-c", second})
	}
	testenv.NoError(t, syscall.Mkfifo(fifo, 0o600))
	testenv.Equal(t, side(good+"; echo >"+fifo), 0, "both succeed:")
	testenv.Contains(t, string(testenv.Must(os.ReadFile(note))(t)), "2 tests passed", "the note is")
	testenv.Equal(t, side(good+"; echo >"+fifo+"; exit 3"), 1, "the second fails:")
	testenv.Equal(t, run(false, []string{"sh", "-c", good, "--and"}), 1, "the second is missing:")
}

// TestPatternWithoutMatchFails: a pattern that no part of a test fits has the test itself pass with nothing done, and
// make the report fail.
func TestPatternWithoutMatchFails(t *testing.T) {
	const test, subtest, skipped = `{"Action":"pass","Package":"m/p","Test":"T"}`, `{"Action":"pass","Package":"m/p","Test":"T/x"}`, `{"Action":"skip","Package":"m/p","Test":"T/x"}`
	for _, c := range []struct {
		args   string
		events []string
		want   int
	}{
		{"-run T ./p", []string{test}, 0},
		{"-run T/x ./p", []string{subtest, test}, 0},
		{"-run T/x ./p", []string{skipped, test}, 0},
		{"-run T/y ./p", []string{test}, 1},
		{"--run=T/y ./p", []string{test}, 1},
		{"-count=1 -run=T/y", []string{test}, 1},
		{"./p/q", []string{test}, 0},
	} {
		// The shell takes what follows its script as that one's arguments.
		args := append([]string{"sh", "-c", "echo '" + strings.Join(c.events, "'; echo '") + "'", "go"}, strings.Fields(c.args)...)
		testenv.Equal(t, run(false, args), c.want, "with %s and %v:", c.args, c.events)
	}
}
