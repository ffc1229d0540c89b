// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// reader converts values to their types and collects their errors.
type reader struct {
	vals     values
	problems Problems
}

func (r *reader) addProblem(src Source, format string, args ...any) {
	r.problems = append(r.problems, src.String()+": "+fmt.Sprintf(format, args...))
}

func (r *reader) isSet(name string) bool { _, ok := r.vals[name]; return ok }

// single returns the value of a setting with a single value, or its default when it was not set.
func (r *reader) single(name string) item {
	s := Lookup(name)
	if items := r.vals[name]; len(items) > 0 {
		it := items[len(items)-1]
		if s.Default != "" && it.text == "" {
			r.addProblem(it.src, "has no value; leave it out to get the default, %s", s.Default)
			return item{s.Default, it.src}
		}
		if len(s.Values) > 0 && it.text != "" && !slices.Contains(s.Values, it.text) {
			r.addProblem(it.src, "%q is none of %s%s", it.text, strings.Join(s.Values, ", "), didYouMean(it.text, "", s.Values))
			return item{s.Default, it.src}
		}
		return it
	}
	return item{text: s.Default}
}

func (r *reader) text(name string) string { return r.single(name).text }

func (r *reader) elements(name string) []item {
	if items, ok := r.vals[name]; ok {
		return items
	}
	return convert.Slice(splitList(Lookup(name).Default), func(t string) item { return item{text: t} })
}

// src returns the source of a setting's value.
func (r *reader) src(name string) Source {
	if items := r.vals[name]; len(items) > 0 {
		return items[0].src
	}
	return Source{Flag: name}
}

func (r *reader) boolean(name string) bool {
	it := r.single(name)
	b, err := strconv.ParseBool(it.text)
	if err != nil {
		r.addProblem(it.src, "%q is neither true nor false", it.text)
	}
	return b
}

func (r *reader) integer(name string, low, high int) int {
	it := r.single(name)
	n, err := strconv.Atoi(it.text)
	if err != nil || n < low || n > high {
		r.addProblem(it.src, "%q is not a number from %d to %d", it.text, low, high)
		return low
	}
	return n
}

// duration returns a duration from 0 to atMost.
func (r *reader) duration(name string, atMost time.Duration) time.Duration {
	it := r.single(name)
	d, err := time.ParseDuration(it.text)
	if err != nil || d < 0 || d > atMost {
		r.addProblem(it.src, "%q is no duration between 0 and %v; write it like 90s", it.text, atMost)
	}
	return d
}

// memory returns a quantity of bytes from atLeast to maxMemory.
func (r *reader) memory(name string, atLeast int64) int64 {
	it := r.single(name)
	q, err := resource.ParseQuantity(it.text)
	bytes := q.Value()
	if err != nil || bytes < atLeast || bytes > maxMemory {
		r.addProblem(it.src, "%q is no memory from %dMi to %dGi; write it like 512Mi", it.text, atLeast>>20, int64(maxMemory)>>30)
		return atLeast
	}
	return bytes
}

// minRate is the least rate at which machines still get content: one that gets less than 256 KiB/s of a blob asks
// another machine.
const minRate = 1 << 20

// rate returns a number of bytes per second; 0 is no limit.
func (r *reader) rate(name string) int64 {
	it := r.single(name)
	q, err := resource.ParseQuantity(it.text)
	bytes := q.Value()
	if err != nil || bytes != 0 && bytes < minRate || bytes > maxMemory {
		r.addProblem(it.src, "%q is neither 0, for no limit, nor a number of bytes per second from 1Mi on; write it like 20Mi", it.text)
	}
	return bytes
}

// maxMemory is more than machines have.
const maxMemory = 1 << 44

func (r *reader) port(name string) int { return r.integer(name, 1, 65535) }

// ip returns an address. It returns the zero value when none is given.
func (r *reader) ip(name string) netip.Addr {
	it := r.single(name)
	if it.text == "" {
		return netip.Addr{}
	}
	return r.parseIP(it)
}

// parseIP parses an address. It returns the zero value for a text that is no address, or has a zone (fe80::1%eth0),
// which is valid on this machine only.
func (r *reader) parseIP(it item) netip.Addr {
	ip, err := netip.ParseAddr(it.text)
	if err != nil || ip.Zone() != "" {
		hint := ""
		if strings.Contains(it.text, "/") {
			hint = "; leave the part after the slash out"
		}
		r.addProblem(it.src, "%q is not an IP address%s", it.text, hint)
		return netip.Addr{}
	}
	return ip.Unmap()
}

// ips returns a list with at most one address of each family.
func (r *reader) ips(name string) []netip.Addr {
	var out []netip.Addr
	for _, it := range r.elements(name) {
		ip := r.parseIP(it)
		if !ip.IsValid() {
			continue
		}
		for _, have := range out {
			if have.Is4() == ip.Is4() {
				r.addProblem(it.src, "%s and %s are of the same address family; give at most one IPv4 and one IPv6 address", have, ip)
			}
		}
		out = append(out, ip)
	}
	return out
}

// cidrs returns a list with at least one network, and at most one of each family.
func (r *reader) cidrs(name string) []netip.Prefix {
	var out []netip.Prefix
	items := r.elements(name)
	if len(items) == 0 {
		r.addProblem(r.src(name), "has no value; leave it out to get the default, %s", Lookup(name).Default)
	}
	for _, it := range items {
		n, err := netip.ParsePrefix(it.text)
		if err != nil || n.Addr().Is4In6() {
			r.addProblem(it.src, "%q is not a network in CIDR notation; write it like %s", it.text, Lookup(name).Default)
			continue
		}
		if n != n.Masked() {
			r.addProblem(it.src, "%s is an address inside a network; the network is %s", it.text, n.Masked())
			continue
		}
		for _, have := range out {
			if have.Addr().Is4() == n.Addr().Is4() {
				r.addProblem(it.src, "%s and %s are of the same address family; give at most one IPv4 and one IPv6 network", have, n)
			}
		}
		out = append(out, n)
	}
	return out
}

// path returns an absolute path. It returns "" when none is given.
func (r *reader) path(name string) string {
	it := r.single(name)
	if it.text == "" {
		return ""
	}
	abs, err := filepath.Abs(it.text)
	if err != nil {
		r.addProblem(it.src, "%q cannot be made an absolute path: %v", it.text, err)
	}
	return abs
}

// existing returns the absolute path of a file. If the user named the file, it must be readable.
func (r *reader) existing(name string) string {
	p := r.path(name)
	if p == "" || !r.isSet(name) {
		return p
	}
	f, err := os.Open(p)
	if err != nil {
		r.addProblem(r.src(name), "%s cannot be read: %v", p, causeOf(err))
		return p
	}
	_ = f.Close() // opened only to check that it can be read
	return p
}

func (r *reader) mode(name string) os.FileMode {
	it := r.single(name)
	n, err := strconv.ParseUint(strings.TrimPrefix(it.text, "0o"), 8, 32)
	if err != nil || n > 0o777 {
		r.addProblem(it.src, "%q is not a file mode; write it in octal, like 0600", it.text)
		return 0o600
	}
	if n&0o400 == 0 {
		r.addProblem(it.src, "mode %04o does not let the owner read the file", n)
	}
	return os.FileMode(n)
}

// portRange parses FROM-TO, both inclusive.
func (r *reader) portRange(name string) utilnet.PortRange {
	it := r.single(name)
	from, to, ok := strings.Cut(it.text, "-")
	a, errA := strconv.Atoi(strings.TrimSpace(from))
	b, errB := strconv.Atoi(strings.TrimSpace(to))
	if !ok || errA != nil || errB != nil || a < 1 || b > 65535 || a > b {
		r.addProblem(it.src, "%q is not a range of ports; write it like %s", it.text, Lookup(name).Default)
		return utilnet.PortRange{}
	}
	return utilnet.PortRange{Base: a, Size: b - a + 1}
}

// args returns extra flags of a component as name=value, without dashes. A name alone means name=true.
func (r *reader) args(name string) []string {
	var out []string
	for _, it := range r.elements(name) {
		if flag, value := r.arg(it); flag != "" {
			out = append(out, flag+"="+value)
		}
	}
	return out
}

func (r *reader) arg(it item) (flag, value string) {
	flag, value, hasValue := strings.Cut(strings.TrimLeft(strings.TrimSpace(it.text), "-"), "=")
	if flag == "" || strings.ContainsAny(flag, " \t:") {
		r.addProblem(it.src, "%q is not a flag; write it like v=2", it.text)
		return "", ""
	}
	if !hasValue {
		value = "true"
	}
	return flag, value
}

// secret returns the value of a setting, or the content of the file that the setting fileName names.
func (r *reader) secret(name, fileName string) string {
	it, file := r.single(name), r.existing(fileName)
	if file == "" {
		if it.text != strings.TrimSpace(it.text) || strings.ContainsAny(it.text, " \t\n") {
			r.addProblem(it.src, "has blanks in it, which no token has")
		}
		return it.text
	}
	if it.text != "" {
		r.addProblem(it.src, "and %s are both given; give one of them", r.src(fileName))
		return it.text
	}
	return r.secretFile(fileName)
}

// secretFile returns the content of a file that holds one word. It returns "" when no file is named.
func (r *reader) secretFile(name string) string {
	file := r.existing(name)
	if file == "" {
		return ""
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "" // existing has reported the error
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, " \t\n") {
		r.addProblem(r.src(name), "%s does not hold exactly one token", file)
	}
	return token
}

// listen returns the address on which to listen: ADDRESS:PORT, or :PORT for all addresses. It returns "" when none is
// given.
func (r *reader) listen(name string) string {
	it := r.single(name)
	if it.text == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(it.text)
	number, portErr := strconv.ParseUint(port, 10, 16)
	_, addrErr := netip.ParseAddr(host)
	if err != nil || portErr != nil || number == 0 || host != "" && addrErr != nil {
		r.addProblem(it.src, "%q is not an address and a port; write it like 192.168.1.10:8443, or :8443 for all addresses of this machine",
			it.text)
		return ""
	}
	return it.text
}
