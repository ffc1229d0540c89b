// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStatusNamesWildcardsOfTheSearchList: pods would take each outside name for one below the domain. The line stays
// while no resolver replies, and ends its warning when the domain is out of the list.
func TestStatusNamesWildcardsOfTheSearchList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var found []string
		var err error
		o := Options{Node: config.Node{Kubelet: config.Kubelet{ResolvConf: "/made/up"}}, Board: status.NewBoard(time.Now)}
		defer testenv.Run(t, func(ctx context.Context) error {
			return watchSearchList(ctx, o, func(_ context.Context, file string) ([]string, error) {
				testenv.Equal(t, file, o.ResolvConf, "the file:")
				return found, err
			})
		})()
		for _, c := range []struct {
			found []string
			err   error
			want  status.State
		}{
			{nil, nil, ""}, {[]string{"wild.example"}, nil, status.Degraded}, {nil, errors.New("no reply"), status.Degraded}, {nil, nil, status.Running},
		} {
			synctest.Wait()
			found, err = c.found, c.err
			time.Sleep(searchListCheck) // of the bubble
			synctest.Wait()
			lines := o.Board.Components()
			if c.want == "" {
				testenv.Equal(t, len(lines), 0, "lines while nothing is wrong:")
				continue
			}
			testenv.True(t, len(lines) == 1 && lines[0].Name == partSearchList && lines[0].State == c.want, "the lines are %+v, want %s", lines, c.want)
			if c.want == status.Degraded {
				testenv.True(t, strings.Contains(lines[0].Message, "wild.example") && strings.Contains(lines[0].Message, "--resolv-conf"), "%s", lines[0].Message)
			}
		}
	})
}
