// SPDX-License-Identifier: Apache-2.0

package openapi

import "github.com/coracle-k8s/coracle/server/openapi/artifact"

// What the tests from outside compare the documents with, and how long an aggregated server's are believed.
const RemoteFresh = remoteFresh

var ContentHash = contentHash

func (h *Handler) File() *artifact.File { return h.file }
