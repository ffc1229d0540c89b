// SPDX-License-Identifier: Apache-2.0

package index_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/embedded/index"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestEncodedIndexIsParsedBack(t *testing.T) {
	x := index.Index{
		{Path: "coracle-cni", Link: "coracle-helper"},
		{Path: "nftables/nft", Mode: 0o555, Size: 12, SHA256: "ab"},
		{Path: "runc", Mode: 0o555, Size: 12, SHA256: "ab"},
	}
	got := testenv.Must(index.Parse(x.Encode()))(t)
	testenv.Require(t, reflect.DeepEqual(got, x), "got %+v, want %+v", got, x)
	testenv.False(t, got.Bytes() != 24, "Bytes() = %d, want 24", got.Bytes())
}

func TestBadIndexIsRejected(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", "empty"},
		{"file 0555 1 ab ../runc", "inside the set"},
		{"file 0555 1 ab /bin/runc", "inside the set"},
		{"file 0999 1 ab runc", "mode"},
		{"file 0555 -1 ab runc", "size"},
		{"file 0555 1 ab runc sh", "neither"},
		{"link ../../etc/passwd ctr", "leads out"},
		{"link /etc/passwd ctr", "leads out"},
		{"directory x", "neither"},
	} {
		if _, err := index.Parse([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %v, want an error with %q", tt.text, err, tt.want)
		}
	}
}
