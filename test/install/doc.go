// SPDX-License-Identifier: Apache-2.0

// Package install runs install.sh and coracle-uninstall on a machine of namespaces and compares the machine before and
// after. The tests need root and CORACLE_BIN; make install-test sees to both.
package install
