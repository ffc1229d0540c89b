// SPDX-License-Identifier: Apache-2.0

// Package logging makes one log out of the many that live in the process: ours (log/slog), Kubernetes' (klog),
// containerd's (logrus) and what libraries write through the standard library's log package.
//
// It owns the form of a line and the choice of what is worth one: our own messages from Info up, those of the
// libraries from Warning up unless the user asks for more. A log file of 50 MB becomes FILE.1 and a new one begins;
// logrotate may do that earlier (the file is opened for appending and copytruncate works). It never ends the process.
package logging
