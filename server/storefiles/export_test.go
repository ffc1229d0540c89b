// SPDX-License-Identifier: Apache-2.0

package storefiles

// BackupAlign is for the tests from outside.
const BackupAlign = backupAlign
