// SPDX-License-Identifier: Apache-2.0

// Package logging makes one log out of the many that live in the process: ours (log/slog), Kubernetes' (klog),
// containerd's (logrus) and what libraries write through the standard library's log package.
//
// It owns the form of a line and the choice of what is worth one: our own messages from Info up, those of the
// libraries from Warning up unless the user asks for more. It never rotates files (that is logrotate's business:
// the file is opened for appending and copytruncate works) and never ends the process.
package logging
