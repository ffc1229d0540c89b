// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// spec is what became of one, as ginkgo's report has it.
type spec struct {
	Containers []string      `json:"ContainerHierarchyTexts"`
	Leaf       string        `json:"LeafNodeText"`
	Kind       string        `json:"LeafNodeType"`
	State      string        `json:"State"`
	RunTime    time.Duration `json:"RunTime"`
	Failure    struct {
		Message string `json:"Message"`
	} `json:"Failure"`
}

func (s spec) name() string { return strings.Join(append(s.Containers, s.Leaf), " ") }

// readReport reads the specs of ginkgo's report in JSON, without those that were not asked for.
func readReport(file string) ([]spec, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("the suite left no report: %w", err)
	}
	var suites []struct {
		SpecReports []spec `json:"SpecReports"`
	}
	if err := json.Unmarshal(text, &suites); err != nil {
		return nil, fmt.Errorf("read the suite's report %s: %w", file, err)
	}
	var out []spec
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			filtered := s.State == "skipped" && s.Failure.Message == ""
			if ran := s.Kind == "It" && !filtered; ran || s.State != "passed" && s.Kind != "It" {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// summary prints which specs failed and which left themselves out, and returns whether some ran and none failed.
func summary(w io.Writer, specs []spec) bool {
	count := map[string]int{}
	for _, s := range specs {
		count[s.State]++
		if s.State != "passed" {
			fmt.Fprintf(w, "%s  %s\n    %s\n", s.State, s.name(), strings.ReplaceAll(short(s.Failure.Message), "\n", "\n    "))
		}
	}
	bad := len(specs) - count["passed"] - count["skipped"]
	fmt.Fprintf(w, "%d specs: %d passed, %d failed, %d left themselves out\n", len(specs), count["passed"], bad, count["skipped"])
	return bad == 0 && count["passed"] > 0
}

// short is the head of a message.
func short(message string) string {
	const most = 600
	if len(message) > most {
		return message[:most] + " …"
	}
	return message
}
