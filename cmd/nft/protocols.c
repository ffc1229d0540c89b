// SPDX-License-Identifier: Apache-2.0

// protocols.so tells the embedded nft the names and numbers of protocols, in place of the C library, which has them from
// the host's /etc/protocols. A minimal system lacks that file (Debian has it in the package netbase). nft then refuses
// some names in rules and lists all others as numbers, which whoever compares a list with what he wrote takes for
// something else.
//
// Build: cc -shared -nostdlib -ffreestanding (packaging/embedded.sh).

struct protoent { // netdb.h
	char *p_name;
	char **p_aliases;
	int p_proto;
};

static char *no_aliases[] = {0};

static struct protoent known[] = {
	{"ip", no_aliases, 0},
	{"icmp", no_aliases, 1},
	{"igmp", no_aliases, 2},
	{"ipencap", no_aliases, 4},
	{"tcp", no_aliases, 6},
	{"udp", no_aliases, 17},
	{"dccp", no_aliases, 33},
	{"ipv6", no_aliases, 41},
	{"gre", no_aliases, 47},
	{"esp", no_aliases, 50},
	{"ah", no_aliases, 51},
	{"ipv6-icmp", no_aliases, 58},
	{"ospf", no_aliases, 89},
	{"pim", no_aliases, 103},
	{"ipcomp", no_aliases, 108},
	{"vrrp", no_aliases, 112},
	{"sctp", no_aliases, 132},
	{"udplite", no_aliases, 136},
};

enum { COUNT = sizeof known / sizeof *known };

static int same(const char *a, const char *b) {
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

struct protoent *getprotobyname(const char *name) {
	if (same(name, "icmpv6"))
		name = "ipv6-icmp";
	for (int i = 0; i < COUNT; i++)
		if (same(known[i].p_name, name))
			return &known[i];
	return 0;
}

struct protoent *getprotobynumber(int number) {
	for (int i = 0; i < COUNT; i++)
		if (known[i].p_proto == number)
			return &known[i];
	return 0;
}
