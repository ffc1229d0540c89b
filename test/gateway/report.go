// SPDX-License-Identifier: Apache-2.0

package main

import (
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

// summary prints how many tests of each profile and level passed, failed and were skipped, and which failed, and returns whether some ran, none failed
// and none was skipped. A test of several profiles counts in each.
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

var failure = regexp.MustCompile(`(?m)^\s*--- FAIL: TestConformance/(\S+) `)

// failures returns the names of failed tests in the suite's output, the innermost alone.
func failures(output string) []string {
	var all, out []string
	for _, match := range failure.FindAllStringSubmatch(output, -1) {
		all = append(all, match[1])
	}
	slices.Sort(all)
	for _, name := range all {
		if !slices.ContainsFunc(all, func(other string) bool { return strings.HasPrefix(other, name+"/") }) {
			out = append(out, name)
		}
	}
	return out
}

// tail returns the last n lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
