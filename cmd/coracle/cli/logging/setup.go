// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/config"
)

// Log is the process' log.
type Log struct {
	*slog.Logger
	libraries *Handler // handles the libraries' messages
	quiet     bool     // the user asked for no more than the default
	file      *file
}

// Setup opens the log and sends the messages of all libraries to it. It changes the state of packages log, log/slog,
// klog and logrus, so main calls it once, before anything else logs.
func Setup(c config.Logging, stderr io.Writer) (*Log, error) {
	l := &Log{}
	out := &sink{w: stderr, time: os.Getenv("JOURNAL_STREAM") == ""} // journald notes the time itself
	if c.File != "" {
		if err := os.MkdirAll(filepath.Dir(c.File), 0o755); err != nil {
			return nil, fmt.Errorf("making the folder of the log file: %w", err)
		}
		f, err := openFile(c.File)
		if err != nil {
			return nil, err
		}
		l.file, out.w, out.time = f, f, true
		if c.AlsoStderr {
			out.w = io.MultiWriter(f, stderr)
		}
	}
	ownLevel, upstreamLevel := slog.LevelInfo, slog.LevelWarn
	if c.Debug {
		ownLevel, upstreamLevel = slog.LevelDebug, slog.LevelInfo
	}
	if c.Verbosity > 0 {
		upstreamLevel = slog.Level(-c.Verbosity)
		ownLevel = min(ownLevel, upstreamLevel) // some parts of coracle pass their logger to upstream's code
	}
	if c.VModule != "" {
		upstreamLevel = slog.Level(-10) // klog itself drops what matches no pattern
	}
	l.Logger = slog.New(&Handler{sink: out, level: ownLevel})
	l.libraries = &Handler{sink: out, level: upstreamLevel, held: &heldLines{}}
	l.quiet = upstreamLevel == slog.LevelWarn
	slog.SetDefault(l.Logger)
	log.SetFlags(0)
	log.SetOutput(newLineWriter(l.libraries, slog.LevelInfo))
	setupLogrus(l.libraries)
	if err := setKlogLevels(c); err != nil {
		return nil, err
	}
	l.RedirectKlog()
	return l, nil
}

// Close closes the log file, if there is one.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.close()
}

// RedirectKlog sends klog's messages to this log. It has to be called again after starting a library that redirects
// klog to itself, as CoreDNS' kubernetes plugin does.
func (l *Log) RedirectKlog() {
	klog.SetLoggerWithOptions(klogLogger(l.libraries), klog.ContextualLogger(true),
		klog.WriteKlogBuffer(func(b []byte) { handleKlogLine(l.libraries, b) }))
}

func setKlogLevels(c config.Logging) error {
	fs := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(fs)
	for name, value := range map[string]string{"v": strconv.Itoa(c.Verbosity), "vmodule": c.VModule} {
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("setting klog's %s: %w", name, err)
		}
	}
	return nil
}

func setupLogrus(h *Handler) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	switch {
	case h.level <= slog.LevelDebug:
		std.SetLevel(logrus.DebugLevel)
	case h.level <= slog.LevelInfo:
		std.SetLevel(logrus.InfoLevel)
	default:
		std.SetLevel(logrus.WarnLevel)
	}
	std.ReplaceHooks(logrus.LevelHooks{})
	std.AddHook(logrusHook{h})
}
