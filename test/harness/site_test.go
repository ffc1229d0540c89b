// SPDX-License-Identifier: Apache-2.0

package harness

import "testing"

func TestRules(t *testing.T) {
	got := rules([]int{1, 2}, map[link]fault{{1, 2}: {cut: true, noConnecting: true}, {2, 1}: {lossPercent: 30, bytesPerSecond: 1000}})
	want := `table netdev site {}
delete table netdev site
table netdev site {
chain to1 {
type filter hook egress device "machine1" priority 0;
ether saddr 02:00:00:00:00:02 numgen random mod 100 < 30 drop
ether saddr 02:00:00:00:00:02 limit rate over 1000 bytes/second burst 65536 bytes drop
}
chain to2 {
type filter hook egress device "machine2" priority 0;
ether saddr 02:00:00:00:00:01 drop
ether saddr 02:00:00:00:00:01 tcp flags & (syn|ack) == syn drop
}
}
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
