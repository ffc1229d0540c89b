// SPDX-License-Identifier: Apache-2.0

// Package logging combines the logs of the process into one: coracle's own (log/slog), Kubernetes' (klog), containerd's
// (logrus) and what libraries write through the standard library's log package.
//
// It owns the form of a line and the choice of what is logged: coracle's own messages from Info up, and those of the
// libraries from Warning up unless the user asks for more. A log file of 50 MB is renamed to FILE.1, and a new one
// begins. logrotate may rotate it earlier: the file is opened for appending, so copytruncate works. The package never
// ends the process.
package logging
