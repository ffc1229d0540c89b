// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
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
		testenv.False(t, !slices.Equal(got, tt.want) || (run != nil) != (tt.want != nil), "pick(%q) = %q, want %q", tt.args, got, tt.want)
	}
}
