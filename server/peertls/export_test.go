// SPDX-License-Identifier: Apache-2.0

package peertls

// ErrNoCertificate is for the tests from outside.
var ErrNoCertificate = errNoCertificate
