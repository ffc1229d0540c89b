// SPDX-License-Identifier: Apache-2.0

package nft_test

import (
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var serviceTables = []nft.Table{{Family: nft.IPv4, Name: nft.ServiceTable}, {Family: nft.IPv6, Name: nft.ServiceTable}}

// expectServiceTables fails unless both tables are there, or neither.
func expectServiceTables(t *testing.T, there bool, when string) {
	t.Helper()
	for _, table := range serviceTables {
		testenv.Equal(t, testenv.Must(nft.Exists(table))(t), there, "%s: table %v is there:", when, table)
	}
}

func TestServiceRulesAreRemovedByTheRecord(t *testing.T) {
	netns.Require(t)
	record := nft.ServiceRecordIn(t.TempDir())
	for _, table := range serviceTables {
		testenv.NoError(t, nft.Ensure(table))
	}
	if name, err := nft.RemoveServiceRules(record); name != "" || err != nil {
		t.Errorf("without a record: %q, %v", name, err)
	}
	expectServiceTables(t, true, "without a record, when they may be another program's")
	testenv.NoError(t, nft.RecordServiceRules(record, nft.ServicesByNFTables))
	if name, err := nft.RemoveServiceRules(record); name != nft.ServicesByNFTables || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expectServiceTables(t, false, "with a record")
	testenv.Fails(t, testenv.Err(os.Stat(record)), "the record is still there: the next time another program's rules would be removed")
	testenv.NoError(t, nft.RecordServiceRules(record, nft.ServicesByNFTables))
	if name, err := nft.RemoveServiceRules(record); name != nft.ServicesByNFTables || err != nil {
		t.Errorf("with a record but no tables: %q, %v", name, err)
	}
}

func TestServiceRulesWhenTheModeChanges(t *testing.T) {
	netns.Require(t)
	record := nft.ServiceRecordIn(t.TempDir())
	ipvs := nft.Table{Family: nft.IPv4, Name: nft.IPVSTable}
	for _, table := range append(serviceTables, ipvs) {
		testenv.NoError(t, nft.Ensure(table))
	}
	for _, name := range []string{nft.ServicesByNFTables, nft.ServicesByIPVS, nft.ServicesByIPVS} {
		testenv.NoError(t, nft.RecordServiceRules(record, name))
	}
	if name, err := nft.RemoveOtherServiceRules(record, nft.ServicesByNFTables); name != nft.ServicesByIPVS || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expectServiceTables(t, true, "in the mode that stays")
	if there, err := nft.Exists(ipvs); there || err != nil {
		t.Errorf("what the other mode made is there: %t, %v", there, err)
	}
	if name, err := nft.RemoveOtherServiceRules(record, nft.ServicesByNFTables); name != "" || err != nil {
		t.Errorf("a second time: %q, %v", name, err)
	}
	if name, err := nft.RemoveServiceRules(record); name != nft.ServicesByNFTables || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expectServiceTables(t, false, "at the end")
}

func TestServiceRulesOfAnUnknownBackEnd(t *testing.T) {
	record := nft.ServiceRecordIn(t.TempDir())
	testenv.Fails(t, nft.RecordServiceRules(record, "of the future"), "a back end whose rules cannot be removed may be recorded")
	testenv.NoError(t, os.WriteFile(record, []byte("of the future\n"), 0o600))
	testenv.WantError(t, testenv.Err(nft.RemoveServiceRules(record)), "of the future")
}
