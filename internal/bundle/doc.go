// SPDX-License-Identifier: Apache-2.0

// Package bundle makes, reads, signs and verifies bundles: one file with a version of coracle for each processor,
// images, charts and manifests, for machines without a network.
//
// A bundle is a tar in OCI layout: index.json, its minisign signatures, and blobs that are named by their digests. The
// index lists all blobs with their sizes, so the position of each byte of the file follows from the index and from the
// number of signatures. A reader compares each header with the only one that can be there: a bundle has no links, no
// folders, no long names and no holes, and nothing behind its end. The same contents always make the same bytes.
//
// The package never asks a clock or a network, and never changes a file in place. docs/adr/0184 has the reasons.
package bundle
