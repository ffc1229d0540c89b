// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	moby "github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
)

// Probe is the result of a check of the kernel. An error field is nil if the kernel has the feature, and otherwise
// tells why not.
type Probe struct {
	// Release is the kernel's version from uname.
	Release string
	// Device is for the device with the addresses of Services.
	Device error
	// Module is for ip_vs. Where it is missing, the fields below are not checked.
	Module error
	// Tracking is for IPVS' connection tracking (CONFIG_IP_VS_NFCT), on which masquerading and NetworkPolicies depend.
	Tracking error
	// Lacking are the requested schedulers that the kernel does not have.
	Lacking []string
	// Families has an error for each family that IPVS does not serve.
	Families map[corev1.IPFamily]error
}

// Err names everything that is missing. It returns nil if nothing is.
func (p Probe) Err() error {
	if err := newEnough(p.Release); err != nil {
		return err
	}
	if p.Module != nil && p.Device != nil {
		return fmt.Errorf("the kernel has no IPVS, the module ip_vs (%w), and no dummy devices, the module dummy (%w)", p.Module, p.Device)
	}
	if p.Module != nil {
		return fmt.Errorf("the kernel has no IPVS, the module ip_vs (%w)", p.Module)
	}
	var missing []string
	note := func(what string, err error) {
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v)", what, err))
		}
	}
	note("connection tracking of IPVS, CONFIG_IP_VS_NFCT", p.Tracking)
	note("the module dummy", p.Device)
	for _, scheduler := range p.Lacking {
		missing = append(missing, "the module ip_vs_"+scheduler)
	}
	for family, err := range p.Families {
		note("IPVS for "+string(family), err)
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("the kernel lacks %s", strings.Join(missing, ", "))
}

// newEnough rejects kernels before 5.9. There IPVS delays a client that uses its port again by a second, or sends it to
// a removed real server, once conntrack knows its connections; conn_reuse_mode does not change that (kubernetes 81775).
func newEnough(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("reading the kernel's version %q: %w", release, err)
	}
	if major < 5 || major == 5 && minor < 9 {
		return fmt.Errorf("the kernel is %s, and IPVS loses connections before 5.9", release)
	}
	return nil
}

// trial are the virtual servers that the check makes: addresses of documentation, in an otherwise empty network
// namespace.
var trial = map[corev1.IPFamily]Key{
	corev1.IPv4Protocol: {Protocol: corev1.ProtocolTCP, Addr: netip.MustParseAddr("192.0.2.1"), Port: 80},
	corev1.IPv6Protocol: {Protocol: corev1.ProtocolTCP, Addr: netip.MustParseAddr("2001:db8::1"), Port: 80},
}

// Find makes one virtual server for each scheduler and family, and a device, in a network namespace that ends with it.
// The kernel loads the modules for that where it can. The machine's own network is not changed.
func Find(schedulers []string, families []corev1.IPFamily) (Probe, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Probe{}, fmt.Errorf("asking for the kernel's version: %w", err)
	}
	p := Probe{Release: unix.ByteSliceToString(u.Release[:]), Module: loadModule(), Families: map[corev1.IPFamily]error{}}
	if newEnough(p.Release) != nil {
		return p, nil
	}
	err := netlinkutil.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return p.probe(schedulers, families)
	})
	if err != nil {
		return p, fmt.Errorf("trying the kernel's IPVS in a network namespace of its own: %w", err)
	}
	return p, nil
}

// probe sets the other fields, in the network namespace of its thread.
func (p *Probe) probe(schedulers []string, families []corev1.IPFamily) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "trial"
	p.Device = netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if p.Module != nil {
		return nil
	}
	h, err := moby.New("")
	if err != nil {
		return fmt.Errorf("opening IPVS: %w", err)
	}
	defer h.Close()
	p.Tracking = unix.Access(sysctlFolder+"vs/conntrack", unix.W_OK)
	for _, family := range families {
		k := &kernel{h: h, family: unix.AF_INET}
		if family == corev1.IPv6Protocol {
			k.family = unix.AF_INET6
		}
		for _, scheduler := range schedulers {
			err := k.AddServer(trial[family], Server{Scheduler: scheduler})
			if err == nil {
				err = k.DeleteServer(trial[family])
			}
			switch {
			case errors.Is(err, errNoScheduler):
				if !slices.Contains(p.Lacking, scheduler) {
					p.Lacking = append(p.Lacking, scheduler)
				}
			case err != nil:
				p.Families[family] = err
			}
		}
	}
	return nil
}

// netlinkFamily is the name of IPVS' netlink family. It exists when the module is loaded.
const netlinkFamily = "IPVS"

// loadModule loads ip_vs where it is not loaded. Unlike the other modules the kernel does not load it at its first use.
func loadModule() error {
	if _, err := netlink.GenlFamilyGet(netlinkFamily); err == nil {
		return nil
	}
	out, err := exec.Command("modprobe", "ip_vs").CombinedOutput()
	if _, missing := netlink.GenlFamilyGet(netlinkFamily); missing == nil {
		return nil
	}
	if first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n"); first != "" {
		return errors.New(first)
	}
	if err == nil {
		return errors.New("modprobe loads it, and the kernel does not answer for it")
	}
	return err
}
