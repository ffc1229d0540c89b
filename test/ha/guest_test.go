//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	machines "github.com/coracle-k8s/coracle/test/guests"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// prepareScript runs on a machine with a clock of its own before its coracle does. The machine shares with the test
// that one's token and kubeconfig, and the time that NTP sets, in a file that appears when NTP answers. The kernel has
// no nftables: of a pod network there is nothing here but the file that says so.
const prepareScript = `date -u -s "$CLOCK"
mkdir -p /etc/cni/net.d
echo '{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "other"}]}' > /etc/cni/net.d/10-other.conflist
share() {
  [ -e "$1" ] || return 0
  cmp -s "$1" "/run/shared/$2" || { cp "$1" "/run/shared/.$2" && mv "/run/shared/.$2" "/run/shared/$2"; }
}
stepped=
while :; do
  share /run/disk/data/server/token "token-$NAME"
  share /run/disk/data/server/agent-token "agent-token-$NAME"
  share /run/disk/kubeconfig "kubeconfig-$NAME"
  step=
  [ ! -e /run/shared/step ] || step=$(cat /run/shared/step)
  [ "$step" = "$stepped" ] || { date -u -s "$step"; stepped=$step; }
  sleep 1
done &
`

// guests are machines with clocks of their own (User-Mode Linux) on a site.
type guests struct {
	t       *testing.T
	site    *harness.Site
	shared  string
	from    *harness.Machine // from which the test asks them
	written []string         // ConfigMaps that were acknowledged
}

// guest is one of them: a server, an agent with its node, or both.
type guest struct {
	*harness.Guest
	*guests
	clockAt string // port and path of what tells the time there
}

func newGuests(t *testing.T) *guests {
	t.Helper()
	dir := harness.GuestFolder(t)
	uml.Require(t)
	overlay := testenv.Must(uml.ModuleFile("overlay"))(t)
	files := map[string]string{"machine.sh": machines.MachineScript, "prepare.sh": prepareScript, "modules": overlay + "\n"}
	for name, text := range files {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	site := harness.NewSite(t)
	return &guests{t: t, site: site, shared: dir, from: site.NewMachine()}
}

// add makes a machine with an empty disk that is off. role is its coracle's command and args are what follows.
func (g *guests) add(number int, role, args string) *guest {
	g.t.Helper()
	memory, clockAt, command := 1000, ":6443/readyz", "server --disable-agent --write-kubeconfig /run/disk/kubeconfig"
	switch role {
	case "server and agent":
		memory, command = 2000, strings.Replace(command, " --disable-agent", "", 1)
	case "agent":
		memory, clockAt, command = 1200, ":10250/healthz", "agent" // the kubelet's
	}
	made := g.site.NewGuest(g.shared, harness.GuestOptions{
		Number: number, Init: filepath.Join(g.shared, "machine.sh"), Disk: 1 << 30, Memory: memory,
		Env: []string{"CORACLE=" + g.from.Coracle(), "SHARED=" + g.shared, "NFS="},
	})
	all := fmt.Sprintf("%s --data-dir /run/disk/data --node-name %s --node-ip %s %s\n", command, made.Name, made.IP, args)
	testenv.NoError(g.t, os.WriteFile(filepath.Join(g.shared, "args-"+made.Name), []byte(all), 0o600))
	return &guest{Guest: made, guests: g, clockAt: clockAt}
}

// boot switches the machine on, with that time on its clock.
func (x *guest) boot(clock time.Time) {
	x.t.Helper()
	x.Boot(fmt.Sprintf("CLOCK=@%d", clock.Unix()))
}

// reads is a file that the machine shares.
func (x *guest) reads(name string) string { return filepath.Join(x.shared, name+"-"+x.Name) }

// clock is what the machine's clock shows, by the answer of its API server or kubelet.
func (x *guest) clock() (time.Time, error) {
	client := &http.Client{Timeout: askTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it is asked for the time
		DialContext:       func(ctx context.Context, network, to string) (net.Conn, error) { return x.from.Dial(ctx, network, to) },
	}}
	answer, err := client.Get("https://" + x.IP + x.clockAt)
	if err != nil {
		return time.Time{}, err
	}
	defer answer.Body.Close()
	return http.ParseTime(answer.Header.Get("Date"))
}
