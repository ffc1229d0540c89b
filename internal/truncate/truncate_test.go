// SPDX-License-Identifier: Apache-2.0

package truncate_test

import (
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/truncate"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestLongTextIsTruncatedBetweenRunes(t *testing.T) {
	testenv.Equal(t, truncate.Text(strings.Repeat("ä", 10), 9), "ääää…", "")
	testenv.Equal(t, truncate.Text("short", 5), "short", "")
}
