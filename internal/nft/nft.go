// SPDX-License-Identifier: Apache-2.0

// Package nft has a few functions for the kernel's nftables: it checks whether a table exists, makes empty tables and
// deletes whole ones. It uses netlink, because it is called every half minute and must not start a program for that. It
// never changes the content of a table.
//
// It also holds the record of the Service proxy's objects in the kernel, including IPVS' virtual servers, and removes
// these objects.
//
// On a kernel without nftables, it behaves as if there were no tables: checking, counting and deleting succeed.
//
// Its goroutines: one for each table whose deletion is followed, woken by the kernel.
package nft

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// Table identifies one table.
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

// Numbers returns the text of a set's elements.
func Numbers[N int | uint16](all []N) string {
	all = slices.Compact(slices.Sorted(slices.Values(all)))
	return strings.Join(convert.Slice(all, func(n N) string { return strconv.Itoa(int(n)) }), ", ")
}

// Missing says whether err means that this kernel has no nftables. err is the error of listing all tables or chains.
// Without netfilter's subsystem of netlink there is no such socket. Without nf_tables no subsystem handles the request,
// and the request itself cannot be invalid.
func Missing(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

// Exists says whether the table exists.
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

// Ensure makes an empty table, unless it exists.
func Ensure(t Table) error {
	return t.change("making", func(c *nftables.Conn, table *nftables.Table) { c.AddTable(table) })
}

// Delete deletes the table and its content. A missing table is no error.
func Delete(t Table) error {
	ok, err := Exists(t)
	if err != nil || !ok {
		return err
	}
	return t.change("deleting", (*nftables.Conn).DelTable)
}

func (t Table) change(doing string, how func(*nftables.Conn, *nftables.Table)) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	how(conn, &nftables.Table{Family: t.Family, Name: t.Name})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("%s the nftables table %s: %w", doing, t.Name, err)
	}
	return nil
}
