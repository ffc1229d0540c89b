// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/coracle-k8s/coracle/internal/truncate"
)

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

// print prints a value as JSON or by the function text, as the flag says.
func (o *outputFlag) print(w io.Writer, v any, text func(io.Writer) error) error {
	if o.value == "json" {
		return printJSON(w, v)
	}
	return text(w)
}

func printText(w io.Writer, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

// printTable prints rows in columns under the headings.
func printTable(w io.Writer, heads []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{heads}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = printableLine(cell)
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

// printableLine replaces non-printing characters, which would control a terminal or break a table, by question marks.
// Much of the printed text comes from other machines.
func printableLine(text string) string { return truncate.Printable(text, "") }

// printableText does the same as printableLine, but keeps lines and tabs. It is for texts such as an error that quotes
// another machine's response.
func printableText(text string) string { return truncate.Printable(text, "\n\t") }
