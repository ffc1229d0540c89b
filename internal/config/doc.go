// SPDX-License-Identifier: Apache-2.0

// Package config holds every setting of coracle in one table and turns command-line flags, environment variables
// and configuration files into checked, typed values.
//
// It owns the table of settings (table.go), the order of precedence (a flag beats an environment variable beats a
// file), the wording of every complaint about a setting, and the layout of the data and run directories (paths.go).
// Flags, completion, help and docs/configuration.md are generated from the table.
//
// It never starts anything, never writes a file and never talks to the network; besides the configuration files it
// reads only the host name and the addresses of the host, and those through [Host].
package config
