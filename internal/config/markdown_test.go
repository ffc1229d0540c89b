// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestDocumentationIsFresh(t *testing.T) {
	want := testenv.Must(os.ReadFile("../../docs/configuration.md"))(t)
	var got bytes.Buffer
	testenv.NoError(t, config.WriteMarkdown(&got))
	testenv.True(t, bytes.Equal(got.Bytes(), want), "docs/configuration.md does not match the table of settings; run: make docs")
}
