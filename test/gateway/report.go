// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// profiles are those that the run is about.
var profiles = []string{"GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-TLS"}

// counts is what became of the tests of one level of a profile.
type counts struct {
	Statistics struct {
		Passed  int `json:"Passed"`
		Failed  int `json:"Failed"`
		Skipped int `json:"Skipped"`
	} `json:"statistics"`
	Failed  []string `json:"failedTests"`
	Skipped []string `json:"skippedTests"`
}

// profile is one of the report's profiles.
type profile struct {
	Name     string `json:"name"`
	Core     counts `json:"core"`
	Extended counts `json:"extended"`
}

// readReport reads the profiles of the suite's report.
func readReport(file string) ([]profile, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("the suite left no report: %w", err)
	}
	var report struct {
		Profiles []profile `json:"profiles"`
	}
	if err := yaml.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("read the suite's report %s: %w", file, err)
	}
	return report.Profiles, nil
}

// summary prints how many tests of each profile and level passed, failed and were skipped, and which failed, and
// returns whether some ran, none failed and none was skipped. A test of several profiles counts in each.
func summary(w io.Writer, results []profile, failures []string) bool {
	for _, f := range failures {
		fmt.Fprintln(w, "failed  "+f)
	}
	ran, bad := 0, 0
	for _, name := range profiles {
		i := slices.IndexFunc(results, func(p profile) bool { return p.Name == name })
		if i < 0 {
			fmt.Fprintf(w, "%-13s no test ran\n", name)
			continue
		}
		for _, level := range []struct {
			name string
			counts
		}{{"core", results[i].Core}, {"extended", results[i].Extended}} {
			n := level.Statistics
			fmt.Fprintf(w, "%-13s %-9s %3d passed, %d failed, %d skipped\n", name, level.name, n.Passed, n.Failed, n.Skipped)
			for _, test := range level.Failed {
				fmt.Fprintf(w, "    failed   %s\n", test)
			}
			for _, test := range level.counts.Skipped {
				fmt.Fprintf(w, "    skipped  %s\n", test)
			}
			ran, bad = ran+n.Passed+n.Failed, bad+n.Failed+n.Skipped
		}
	}
	return ran > 0 && bad == 0
}

// failure is how testify prints one: with the place, the error, the test, and what the caller says about it.
var failure = regexp.MustCompile(`(?s)\tError:\s+\t(.*?)\n\s+\tTest:\s+\tTestConformance(\S*)(?:\n\s+\tMessages:\s+\t([^\n]*))?`)

// failed is a line that Go's tests print of one.
var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: TestConformance(\S*) `)

// failures returns the failed tests in the suite's output, the innermost alone, each with what it says is wrong.
func failures(output string) []string {
	var names, out []string
	for _, match := range failed.FindAllStringSubmatch(output, -1) {
		names = append(names, match[1])
	}
	slices.Sort(names)
	for _, name := range names {
		if slices.ContainsFunc(names, func(other string) bool { return strings.HasPrefix(other, name+"/") }) {
			continue
		}
		line := cmp.Or(strings.TrimPrefix(name, "/"), "the suite")
		for _, match := range failure.FindAllStringSubmatch(output, -1) {
			if match[2] == name {
				line += "\n    " + short(strings.Join(strings.Fields(match[3]+": "+match[1]), " "))
			}
		}
		out = append(out, line)
	}
	return out
}

// short is the head of a message.
func short(message string) string {
	const most = 400
	if len(message) > most {
		return message[:most] + " …"
	}
	return strings.TrimPrefix(message, ": ")
}

// tail returns the last n lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
