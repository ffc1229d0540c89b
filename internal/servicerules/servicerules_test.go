// SPDX-License-Identifier: Apache-2.0

package servicerules

import (
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

var tables = []nft.Table{{Family: nft.IPv4, Name: NFTable}, {Family: nft.IPv6, Name: NFTable}}

// expect fails unless both tables are there, or neither.
func expect(t *testing.T, there bool, when string) {
	t.Helper()
	for _, table := range tables {
		testenv.Equal(t, testenv.Must(nft.Exists(table))(t), there, "%s: table %v is there:", when, table)
	}
}

func TestRemoveGoesByTheRecord(t *testing.T) {
	netns.Require(t)
	record := RecordIn(t.TempDir())
	for _, table := range tables {
		testenv.NoError(t, nft.Ensure(table))
	}
	if name, err := Remove(record); name != "" || err != nil {
		t.Errorf("without a record: %q, %v", name, err)
	}
	expect(t, true, "without a record, when they may be another program's")
	testenv.NoError(t, Write(record, NFTables))
	if name, err := Remove(record); name != NFTables || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expect(t, false, "with a record")
	testenv.Fails(t, testenv.Err(os.Stat(record)), "the record is still there: the next time another program's rules would be removed")
	testenv.NoError(t, Write(record, NFTables))
	if name, err := Remove(record); name != NFTables || err != nil {
		t.Errorf("with a record but no tables: %q, %v", name, err)
	}
}

func TestModeChanges(t *testing.T) {
	netns.Require(t)
	record := RecordIn(t.TempDir())
	ipvs := nft.Table{Family: nft.IPv4, Name: IPVSTable}
	for _, table := range append(tables, ipvs) {
		testenv.NoError(t, nft.Ensure(table))
	}
	for _, name := range []string{NFTables, IPVS, IPVS} {
		testenv.NoError(t, Write(record, name))
	}
	if name, err := RemoveOthers(record, NFTables); name != IPVS || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expect(t, true, "in the mode that stays")
	if there, err := nft.Exists(ipvs); there || err != nil {
		t.Errorf("what the other mode made is there: %t, %v", there, err)
	}
	if name, err := RemoveOthers(record, NFTables); name != "" || err != nil {
		t.Errorf("a second time: %q, %v", name, err)
	}
	if name, err := Remove(record); name != NFTables || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expect(t, false, "at the end")
}

func TestUnknownBackEnd(t *testing.T) {
	record := RecordIn(t.TempDir())
	testenv.Fails(t, Write(record, "of the future"), "a back end whose rules cannot be removed may be recorded")
	testenv.NoError(t, os.WriteFile(record, []byte("of the future\n"), 0o600))
	testenv.WantError(t, testenv.Err(Remove(record)), "of the future")
}
