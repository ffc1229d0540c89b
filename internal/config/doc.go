// SPDX-License-Identifier: Apache-2.0

// Package config holds every setting of coracle in one table. It turns command-line flags, environment variables and
// configuration files into checked, typed values.
//
// It owns the table of settings (table.go), the order of precedence (a flag beats an environment variable beats a
// file), the wording of every error about a setting, and the layout of the data and run directories (paths.go). Flags,
// completion, help and docs/configuration.md are generated from the table.
//
// It never starts anything and never sends to the network. It writes no file except a machine's id (NameWithID). It
// reads the configuration files and the files that settings name. Host name and addresses of the host come from [Host].
package config
