// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// User is the user name of child processes at the API server and in its audit log. Its group has all permissions, since
// charts may contain roles.
const (
	User      = "system:coracle:helm"
	userGroup = "system:masters"
)

// ChildEngine does each request in a child process. Its Do is an [Engine].
type ChildEngine struct {
	// Config is the term's client configuration. The store refuses writes over it after the end of the term.
	Config *rest.Config
	// Program is the path of coracle, which is also the child process, by the name helmjob.Name.
	Program string
	// Dir is a folder for sockets. Empty is for the system's folder of temporary files.
	Dir    string
	Logger *slog.Logger
}

// Do is an [Engine].
func (c ChildEngine) Do(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
	if c.Program == "" {
		return nil, errors.New("this server was given no program for Helm charts")
	}
	config := rest.CopyConfig(c.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: User, Groups: []string{userGroup}}
	api, err := helmjob.OpenAccess(ctx, c.Dir, config)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	q.Socket = api.Path()
	return helmjob.Runner{Program: c.Program, Env: helmjob.Environment(), Log: logged{c.Logger}}.Run(ctx, q)
}

// logged writes a child's lines to the log, for debugging. The result contains everything else.
type logged struct{ log *slog.Logger }

func (l logged) Write(p []byte) (int, error) {
	if l.log != nil && l.log.Enabled(context.Background(), slog.LevelDebug) {
		for line := range strings.Lines(string(p)) {
			l.log.Debug("helm: " + strings.TrimSpace(line))
		}
	}
	return len(p), nil
}
