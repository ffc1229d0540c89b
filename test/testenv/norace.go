// SPDX-License-Identifier: Apache-2.0

//go:build !race

package testenv

// RaceDetector says whether this program was built with it.
const RaceDetector = false
