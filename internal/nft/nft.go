// SPDX-License-Identifier: Apache-2.0

// Package nft asks the kernel few things about its nftables, such as whether a table is there; and it makes empty
// tables and deletes whole ones. It speaks netlink, because it is asked every half minute and must not start a program
// for that. It never changes what is in a table.
//
// It also keeps the record of what the Service proxy has in the kernel, with IPVS' virtual servers, and removes that.
//
// A kernel without nftables holds no tables: asking for them, counting them and deleting them succeeds there.
package nft

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Table names one table.
type Table struct {
	Family nftables.TableFamily
	Name   string
}

// Families of Table.
const (
	INet = nftables.TableFamilyINet
	IPv4 = nftables.TableFamilyIPv4
	IPv6 = nftables.TableFamilyIPv6
)

// Missing says whether err, of a question about all tables or chains, means that this kernel has no nftables: without
// netfilter's part of netlink there is no such socket, and without nf_tables nothing there takes the question, which
// has nothing else that could be invalid.
func Missing(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

// Exists says whether the table is there.
func Exists(t Table) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(t.Family)
	if Missing(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("listing nftables tables: %w", err)
	}
	for _, have := range tables {
		if have.Name == t.Name {
			return true, nil
		}
	}
	return false, nil
}

// Ensure makes the table, empty, when it is not there.
func Ensure(t Table) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	conn.AddTable(&nftables.Table{Family: t.Family, Name: t.Name})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("making the nftables table %s: %w", t.Name, err)
	}
	return nil
}

// Delete removes the table with all that is in it; a missing one is no error.
func Delete(t Table) error {
	ok, err := Exists(t)
	if err != nil || !ok {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	conn.DelTable(&nftables.Table{Family: t.Family, Name: t.Name})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting the nftables table %s: %w", t.Name, err)
	}
	return nil
}
