// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"os"
	"testing"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var serviceTables = []Table{{Family: IPv4, Name: ServiceTable}, {Family: IPv6, Name: ServiceTable}}

// expectServiceTables fails unless both tables are there, or neither.
func expectServiceTables(t *testing.T, there bool, when string) {
	t.Helper()
	for _, table := range serviceTables {
		testenv.Equal(t, testenv.Must(Exists(table))(t), there, "%s: table %v is there:", when, table)
	}
}

func TestServiceRulesAreRemovedByTheRecord(t *testing.T) {
	netns.Require(t)
	record := ServiceRecordIn(t.TempDir())
	for _, table := range serviceTables {
		testenv.NoError(t, Ensure(table))
	}
	if name, err := RemoveServiceRules(record); name != "" || err != nil {
		t.Errorf("without a record: %q, %v", name, err)
	}
	expectServiceTables(t, true, "without a record, when they may be another program's")
	testenv.NoError(t, RecordServiceRules(record, ServicesByNFTables))
	if name, err := RemoveServiceRules(record); name != ServicesByNFTables || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expectServiceTables(t, false, "with a record")
	testenv.Fails(t, testenv.Err(os.Stat(record)), "the record is still there: the next time another program's rules would be removed")
	testenv.NoError(t, RecordServiceRules(record, ServicesByNFTables))
	if name, err := RemoveServiceRules(record); name != ServicesByNFTables || err != nil {
		t.Errorf("with a record but no tables: %q, %v", name, err)
	}
}

func TestServiceRulesWhenTheModeChanges(t *testing.T) {
	netns.Require(t)
	record := ServiceRecordIn(t.TempDir())
	ipvs := Table{Family: IPv4, Name: IPVSTable}
	for _, table := range append(serviceTables, ipvs) {
		testenv.NoError(t, Ensure(table))
	}
	for _, name := range []string{ServicesByNFTables, ServicesByIPVS, ServicesByIPVS} {
		testenv.NoError(t, RecordServiceRules(record, name))
	}
	if name, err := RemoveOtherServiceRules(record, ServicesByNFTables); name != ServicesByIPVS || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expectServiceTables(t, true, "in the mode that stays")
	if there, err := Exists(ipvs); there || err != nil {
		t.Errorf("what the other mode made is there: %t, %v", there, err)
	}
	if name, err := RemoveOtherServiceRules(record, ServicesByNFTables); name != "" || err != nil {
		t.Errorf("a second time: %q, %v", name, err)
	}
	if name, err := RemoveServiceRules(record); name != ServicesByNFTables || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	expectServiceTables(t, false, "at the end")
}

func TestServiceRulesOfAnUnknownBackEnd(t *testing.T) {
	record := ServiceRecordIn(t.TempDir())
	testenv.Fails(t, RecordServiceRules(record, "of the future"), "a back end whose rules cannot be removed may be recorded")
	testenv.NoError(t, os.WriteFile(record, []byte("of the future\n"), 0o600))
	testenv.WantError(t, testenv.Err(RemoveServiceRules(record)), "of the future")
}
