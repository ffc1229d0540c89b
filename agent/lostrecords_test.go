// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestStatusNamesImagesWithoutRecord(t *testing.T) {
	o := Options{DataDir: "/data", Board: status.NewBoard(time.Now)}
	o.reportLostRecords([]string{"a:1", "b:2"})
	c := o.Board.Components()
	testenv.True(t, len(c) == 1 && c[0].State == status.Degraded, "the board has %v", c)
	testenv.Equal(t, c[0].Message, "the record of image a:1, of image b:2 was lost in a power cut; it needs its registry once, although "+
		"it is complete on this node. Without the registry, put an archive of it into /data/images", "the line is")
	o.reportLostRecords(nil)
	testenv.False(t, o.Board.Components()[0].State.Trouble(), "the line stays")
	Options{}.reportLostRecords([]string{"a:1"}) // without a board
}
