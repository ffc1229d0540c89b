// SPDX-License-Identifier: Apache-2.0

// The compiler takes functions without a body, as in schedule.go, only where a package has a file in assembly.
