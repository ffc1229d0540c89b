// SPDX-License-Identifier: Apache-2.0

package disk

import "fmt"

// A DamageError says that a file of the store does not hold what was written.
type DamageError struct {
	Path   string // the file
	Detail string // what is wrong with it
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("the store's file %s is damaged: %s. "+
		"Nothing was overwritten and the store was not started. "+
		"Stop this server, keep a copy of the store's directory, and restore the directory from a backup; "+
		"where the cluster has other servers, move the directory away and let this server join again instead",
		e.Path, e.Detail)
}

func newDamageError(path, format string, args ...any) error {
	return &DamageError{Path: path, Detail: fmt.Sprintf(format, args...)}
}
