// SPDX-License-Identifier: Apache-2.0

package images

import "github.com/fsnotify/fsnotify"

// What the tests from outside ask.
var BeingWritten, RefName = beingWritten, refName

// UnpinAfter is how long an image is pinned without an archive.
const UnpinAfter = unpinAfter

// SetNewWatcher has a folder watched by another watcher.
func (f *Folder) SetNewWatcher(made func() (*fsnotify.Watcher, error)) { f.newWatcher = made }
