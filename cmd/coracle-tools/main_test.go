// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
)

func TestProgramIsPickedByName(t *testing.T) {
	for _, tt := range []struct{ args, want []string }{
		{[]string{"/data/bin/kubectl", "get", "ctr"}, []string{"kubectl", "get", "ctr"}},
		{[]string{"coracle-tools", "ctr", "images", "ls"}, []string{"ctr", "images", "ls"}},
		{[]string{"coracle-tools", "get"}, nil},
		{[]string{"coracle-tools"}, nil},
		{nil, nil},
	} {
		run, got := pick(tt.args)
		if !slices.Equal(got, tt.want) || (run != nil) != (tt.want != nil) {
			t.Errorf("pick(%q) = %q, want %q", tt.args, got, tt.want)
		}
	}
}
