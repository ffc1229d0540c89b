// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kubeletapis "k8s.io/kubelet/pkg/apis"
	"k8s.io/kubernetes/pkg/util/taints"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// MaxShutdownGrace is the longest time for pods to end when the machine goes down. systemd powers a machine off by
// force after half an hour.
const MaxShutdownGrace = 20 * time.Minute

// Node holds the settings that servers and agents have in common: those of the machine as a node.
type Node struct {
	Name      string
	NameGiven bool         // given by the operator; otherwise it is the host's
	IPs       []netip.Addr // one or two, of different families; the first is the preferred one
	IPsGiven  bool         // given by the operator; otherwise HostIPs found them, and may find others later
	// ExternalIPs are at most one of each family. They need not be addresses of the machine's interfaces.
	ExternalIPs []netip.Addr
	// WithID says that an id, which the machine keeps, is to be appended to Name; see NameWithID.
	WithID bool

	Kubelet
	Runtime

	RegistriesFile string // registries.yaml; need not exist unless the user named it
	// DisableDefaultEndpoint keeps registries that have mirrors in that file from being asked themselves.
	DisableDefaultEndpoint bool
	// ContentRate limits what other machines get of images from this one, in bytes per second; 0 is no limit.
	ContentRate int64

	// NodePortAddresses are the CIDRs of local addresses at which node ports are served. None means IPs.
	NodePortAddresses []string

	// NetworkInterface is the interface for traffic between nodes' pods: its name, or a pattern (path.Match). "" means
	// the interface that has the node's address.
	NetworkInterface string
	// NetworkExternal makes other nodes send packets for this node's pods to ExternalIPs.
	NetworkExternal bool
	ProxyMode       string
	IPVSScheduler   string

	// ShutdownGrace is how long pods may take to end when the machine goes down; 0 means that they are not stopped.
	ShutdownGrace time.Duration

	Ingress IngressProxy

	// StoragePaths are the folders for local volumes; the first is the default one.
	StoragePaths []string
}

// Kubelet holds the settings that the kubelet gets.
type Kubelet struct {
	// Labels and Taints are given to the node when it registers. Later changes are agent/nodesettings.go's.
	Labels map[string]string
	Taints []corev1.Taint
	// ResolvConf is the resolv.conf that pods inherit. "" means the host's, see package resolvconf.
	ResolvConf  string
	KubeletArgs []string // name=value, in upstream's syntax, --config and --config-dir among them
}

// Runtime holds the settings that containerd gets.
type Runtime struct {
	PauseImage     string // full name; "" means the embedded one
	Snapshotter    string // one of snapshotters; auto means overlayfs where the file system supports it
	DefaultRuntime string // of pods without a RuntimeClass; "" means the embedded runc
	// NonrootDevices gives devices to the users that pods' security contexts name.
	NonrootDevices bool
}

func (r *reader) node(h Host, except []netip.Prefix) Node {
	n := Node{
		Name:        r.nodeName(h),
		NameGiven:   r.isSet("node-name"),
		IPs:         r.nodeIPs(h, except),
		IPsGiven:    r.isSet("node-ip"),
		ExternalIPs: r.externalIPs(except),
		WithID:      r.boolean("with-node-id"),
		Kubelet: Kubelet{
			Labels:      r.labels("node-label"),
			Taints:      r.taints("node-taint"),
			ResolvConf:  r.existing("resolv-conf"),
			KubeletArgs: append(r.kubeletFlags(), r.args("kubelet-arg")...),
		},
		Runtime: Runtime{
			PauseImage:     r.text("pause-image"),
			Snapshotter:    r.text("snapshotter"),
			DefaultRuntime: r.text("default-runtime"),
			NonrootDevices: r.boolean("nonroot-devices"),
		},
		RegistriesFile: r.existing("private-registry"),

		DisableDefaultEndpoint: r.boolean("disable-default-registry-endpoint"),
		ContentRate:            r.rate("content-rate"),

		NodePortAddresses: r.nodePortAddresses("kube-proxy-arg"),
		NetworkInterface:  r.pattern("network-iface"),
		NetworkExternal:   r.boolean("network-external-ip"),
		ProxyMode:         r.text("proxy-mode"),
		IPVSScheduler:     r.text("ipvs-scheduler"),
		ShutdownGrace:     r.duration("shutdown-grace-period", MaxShutdownGrace),
		Ingress:           r.ingressProxy(),
		StoragePaths:      r.storagePaths("default-local-storage-path"),
	}
	if n.NetworkExternal && !n.reachedOutside() {
		r.addProblem(r.src("network-external-ip"), "other nodes find this one's pods at its external address only where it has one of a family "+
			"that its own address has: give it with --node-external-ip")
	}
	return n
}

// kubeletFlags returns the flags of the kubelet that are settings of their own, under the same names, as in k3s.
func (r *reader) kubeletFlags() (args []string) {
	if r.boolean("protect-kernel-defaults") {
		args = append(args, "protect-kernel-defaults=true")
	}
	for _, name := range []string{"image-credential-provider-bin-dir", "image-credential-provider-config"} {
		if path := r.existing(name); path != "" {
			args = append(args, name+"="+path)
		}
	}
	return args
}

// reachedOutside says whether an external address can replace one of the machine's own addresses. With
// NetworkInterface, any external address is accepted, because the addresses of that interface are not known here.
func (n Node) reachedOutside() bool {
	return slices.ContainsFunc(n.ExternalIPs, func(out netip.Addr) bool {
		return n.NetworkInterface != "" || slices.ContainsFunc(n.IPs, func(own netip.Addr) bool { return own.Is4() == out.Is4() })
	})
}

// storagePaths returns the folders for volumes. It refuses folders that are not for volumes alone, which are those
// directly below /.
func (r *reader) storagePaths(name string) []string {
	var out []string
	for _, it := range r.elements(name) {
		path, err := filepath.Abs(it.text)
		if err != nil {
			r.addProblem(it.src, "%q is no folder: %v", it.text, err)
			continue
		}
		if filepath.Dir(path) == "/" {
			r.addProblem(it.src, "%s holds, or may come to hold, other things; give volumes a folder of their own, such as %s", path,
				filepath.Join(path, "volumes"))
			continue
		}
		if !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	if len(out) == 0 {
		out = []string{r.paths().StorageDir}
	}
	return out
}

// nodeName returns the node's name. It checks the name against the rules of the API and of the label
// kubernetes.io/hostname.
func (r *reader) nodeName(h Host) string {
	name, src := r.text("node-name"), r.src("node-name")
	fromHost := name == ""
	if fromHost {
		hostname, err := h.Hostname()
		if err != nil {
			r.addProblem(src, "the host name cannot be found (%v); give the node's name", err)
			return ""
		}
		name = strings.ToLower(strings.TrimSpace(hostname))
	}
	problems := validation.IsDNS1123Subdomain(name)
	if len(problems) == 0 && len(name) > validation.LabelValueMaxLength {
		problems = []string{"it is longer than 63 characters"}
	}
	switch {
	case len(problems) == 0:
	case fromHost:
		r.addProblem(src, "the host name %q cannot be a node's name (%s); give one with --node-name", name, problems[0])
	default:
		r.addProblem(src, "%q cannot be a node's name: %s", name, problems[0])
	}
	return name
}

func (r *reader) nodeIPs(h Host, except []netip.Prefix) []netip.Addr {
	if r.isSet("node-ip") {
		ips := r.ips("node-ip")
		for _, ip := range ips {
			if !isUsable(ip) {
				r.addProblem(r.src("node-ip"), "%s cannot be a node's address: other machines and pods must be able to reach it", ip)
			}
			r.owned(h, r.src("node-ip"), ip)
			if inNetworks(ip, except) {
				r.addProblem(r.src("node-ip"), "%s lies in a network of the cluster's own (--cluster-cidr, --service-cidr); choose other networks",
					ip)
			}
		}
		return ips
	}
	ips, err := HostIPs(h, except)
	if err != nil {
		r.addProblem(Source{Flag: "node-ip"}, "this machine's address cannot be found (%v); give it", err)
		return nil
	}
	if len(ips) == 0 {
		r.addProblem(Source{Flag: "node-ip"}, "this machine has no address but loopback; connect it to a network, or give an interface an "+
			"address (ip address add 192.0.2.1/32 dev eth0) and name it here")
	}
	return ips
}

// HostIPs returns the addresses of a machine to which none were given: one for each family of the cluster's networks,
// in the order of the networks. Without networks it returns the best address only. It may return none.
func HostIPs(h Host, networks []netip.Prefix) ([]netip.Addr, error) {
	found, err := h.Addresses(networks)
	if err != nil {
		return nil, err
	}
	families := familiesOf(networks)
	if len(families) == 0 && len(found) > 0 {
		families = []bool{found[0].Is4()}
	}
	var ips []netip.Addr
	for _, v4 := range families {
		for _, ip := range found {
			if ip.Is4() == v4 {
				ips = append(ips, ip)
				break
			}
		}
	}
	return ips, nil
}

func (r *reader) externalIPs(except []netip.Prefix) []netip.Addr {
	ips := r.ips("node-external-ip")
	for _, ip := range ips {
		if !isUsable(ip) || inNetworks(ip, except) {
			r.addProblem(r.src("node-external-ip"), "%s cannot be an address at which others reach this node", ip)
		}
	}
	return ips
}

// pattern returns an interface's name or a pattern for it.
func (r *reader) pattern(name string) string {
	it := r.single(name)
	if _, err := path.Match(it.text, ""); err != nil || strings.Contains(it.text, "/") {
		r.addProblem(it.src, "%q is neither the name of an interface nor a pattern for it, such as eth*", it.text)
	}
	return it.text
}

// owned reports an error for an address that no interface has.
func (r *reader) owned(h Host, src Source, ip netip.Addr) {
	if ok, err := h.Owns(ip); err != nil {
		r.addProblem(src, "%v", err)
	} else if !ok && !ip.IsLoopback() {
		r.addProblem(src, "%s is not an address of this machine; ip address shows those that it has", ip)
	}
}

// familiesOf returns true for IPv4 and false for IPv6, each once, in the order of the networks.
func familiesOf(networks []netip.Prefix) []bool {
	var out []bool
	for _, n := range networks {
		v4 := n.Addr().Is4()
		if len(out) == 0 || (len(out) == 1 && out[0] != v4) {
			out = append(out, v4)
		}
	}
	return out
}

func (r *reader) labels(name string) map[string]string {
	out := map[string]string{}
	for _, it := range r.elements(name) {
		key, value, ok := strings.Cut(it.text, "=")
		if !ok {
			r.addProblem(it.src, "%q is not a label; write it like key=value", it.text)
			continue
		}
		if p := validation.IsQualifiedName(key); len(p) > 0 {
			r.addProblem(it.src, "%q cannot be a label's key: %s", key, p[0])
			continue
		}
		if p := validation.IsValidLabelValue(value); len(p) > 0 {
			r.addProblem(it.src, "%q cannot be a label's value: %s", value, p[0])
			continue
		}
		if isReservedLabel(key) {
			r.addProblem(it.src, "a node may not give itself the label %s; set it when the cluster runs: coracle kubectl label node NAME %s=%s",
				key, key, value)
			continue
		}
		out[key] = value
	}
	return out
}

// isReservedLabel says whether the NodeRestriction admission plugin forbids kubelets to set a label.
func isReservedLabel(key string) bool {
	ns, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	reserved := ns == "kubernetes.io" || strings.HasSuffix(ns, ".kubernetes.io") || ns == "k8s.io" || strings.HasSuffix(ns, ".k8s.io")
	return reserved && !kubeletapis.IsKubeletLabel(key)
}

// nodePortAddresses reads the one flag of kube-proxy that is supported. Coracle's proxy uses upstream's code without
// its command.
func (r *reader) nodePortAddresses(name string) []string {
	const known = "nodeport-addresses"
	var out []string
	for _, it := range r.elements(name) {
		flag, value := r.arg(it)
		if flag == "" {
			continue
		}
		if flag != known {
			r.addProblem(it.src, "%s is no setting of coracle's proxy; there is: %s. --proxy-mode and --ipvs-scheduler are flags of their own",
				flag, known)
			continue
		}
		for _, text := range splitList(value) {
			if text == "primary" {
				continue // "primary" is the default
			}
			if _, err := netip.ParsePrefix(text); err != nil {
				r.addProblem(it.src, "%s: %q is neither primary nor a network in CIDR notation, such as 192.168.1.0/24", known, text)
				continue
			}
			out = append(out, text)
		}
	}
	return out
}

func (r *reader) taints(name string) (out []corev1.Taint) {
	for _, it := range r.elements(name) {
		added, removed, err := taints.ParseTaints([]string{it.text})
		if err != nil || len(removed) > 0 {
			r.addProblem(it.src, "%q is not a taint; write it like key=value:NoSchedule, or with PreferNoSchedule or NoExecute (%v)", it.text,
				cmp.Or(err, errors.New("the minus is for removal")))
			continue
		}
		for _, have := range out {
			if have.MatchTaint(&added[0]) {
				r.addProblem(it.src, "%q: there is already the taint %s; a key and an effect go together once", it.text, have.ToString())
			}
		}
		out = append(out, added...)
	}
	return out
}

// NameWithID returns the node's name with the id that is kept in a folder of the machine. It makes the id if there is
// none.
func NameWithID(name, dir string) (string, error) {
	path := filepath.Join(dir, "node-id")
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading this machine's id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if id == "" {
		made := make([]byte, 4)
		_, _ = rand.Read(made) // never fails
		id = hex.EncodeToString(made)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", fmt.Errorf("making the folder for this machine's id: %w", err)
		}
		if err := atomicfile.Write(path, []byte(id+"\n"), 0o644); err != nil {
			return "", err
		}
	}
	name += "-" + id
	if p := validation.IsDNS1123Subdomain(name); len(p) > 0 || len(name) > validation.LabelValueMaxLength {
		return "", fmt.Errorf("--with-node-id: %q cannot be a node's name; give a shorter one with --node-name, or mend %s", name, path)
	}
	return name, nil
}
