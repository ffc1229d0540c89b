//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// What the budgets of the console are for: manyPods pods in manyNamespaces namespaces, and changesPerSecond changes of
// their status.
const (
	manyPods         = 5000
	manyNamespaces   = 10
	changesPerSecond = 50
)

// byHand skips a measurement unless it was asked for: CORACLE_CONSOLE_BUDGET has its name. It prints and never judges:
// times are worth something on a quiet machine alone, whose load is printed beside them.
func byHand(t *testing.T, name string) {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("CORACLE_CONSOLE_BUDGET"), ","), name) {
		t.Skipf("a measurement: CORACLE_CONSOLE_BUDGET=%s runs it", name)
	}
}

// setting is one of a measurement.
func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// load is the machine's load of the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	return strings.Fields(string(text))[0]
}

// client makes a client of a server, without a limit of its own.
func client(t *testing.T, s *harness.Server) *kubernetes.Clientset {
	t.Helper()
	config := testenv.Must(clientcmd.BuildConfigFromFlags("", s.Kubeconfig))(t)
	config.QPS = -1
	config.Dial = s.Machine.Dial
	return testenv.Must(kubernetes.NewForConfig(config))(t)
}

// parallel calls f with each number below n, from eight goroutines.
func parallel(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func podName(i int) (namespace, name string) {
	return fmt.Sprintf("crowd-%d", i%manyNamespaces), fmt.Sprintf("web-7d9c5b6f8d-%05d", i)
}

// addPods makes the pods. No scheduler knows them, so they stay as they are made.
func addPods(t *testing.T, s *harness.Server, c *kubernetes.Clientset) {
	t.Helper()
	began := time.Now()
	parallel(t, manyNamespaces, func(i int) error {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("crowd-%d", i)}}
		_, err := c.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{})
		return err
	})
	for i := range manyNamespaces {
		harness.Eventually(t, harness.Soon, "the namespace's service account", func() error {
			_, err := c.CoreV1().ServiceAccounts(fmt.Sprintf("crowd-%d", i)).Get(t.Context(), "default", metav1.GetOptions{})
			return err
		})
	}
	small := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")}
	parallel(t, manyPods, func(i int) error {
		namespace, name := podName(i)
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: name,
				Labels: map[string]string{
					"app.kubernetes.io/name": "web", "app.kubernetes.io/instance": "shop", "pod-template-hash": "7d9c5b6f8d", "tier": "front",
				},
				Annotations: map[string]string{"prometheus.io/scrape": "true", "checksum/config": strings.Repeat("0123456789abcdef", 4)},
			},
			Spec: corev1.PodSpec{
				SchedulerName: "none", AutomountServiceAccountToken: new(bool),
				Containers: []corev1.Container{{
					Name: "web", Image: "registry.example.com/shop/web:1.2.3", Resources: corev1.ResourceRequirements{Requests: small, Limits: small},
					Env:   []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "DATABASE", Value: "postgres://db.shop.svc:5432/shop"}},
					Ports: []corev1.ContainerPort{{ContainerPort: 8080, Name: "http"}},
				}},
			},
		}
		_, err := c.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
		return err
	})
	t.Logf("%d pods were made in %v", manyPods, time.Since(began).Round(time.Second))
}

// churn changes the status of pods until ctx ends: changesPerSecond times a second, each fifth time one of the first
// rows of a list. A pod's reason is then the time of the change, in milliseconds, which lists show.
func churn(ctx context.Context, c *kubernetes.Clientset, failed *atomic.Int64) (wait func()) {
	todo := make(chan int) // unbuffered: what cannot be done in time is not done
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range todo {
				namespace, name := podName(i)
				patch := fmt.Sprintf(`{"status":{"reason":"T%d"}}`, time.Now().UnixMilli())
				if _, err := c.CoreV1().Pods(namespace).Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Go(func() {
		defer close(todo)
		tick := time.NewTicker(time.Second / changesPerSecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			pod := (i * 7919) % manyPods
			if i%5 == 0 {
				pod = (i / 5 % 20) * manyNamespaces // the first of the first namespace
			}
			select {
			case todo <- pod:
			default:
				failed.Add(1)
			}
		}
	})
	return wg.Wait
}

// sample is what a server takes at one moment.
type sample struct {
	rss, anonymous, heap float64 // MB; heap with what was not collected yet
	cpu                  time.Duration
	written              int64
}

func (s sample) String() string {
	return fmt.Sprintf("RSS %6.1f MB, anonymous %6.1f MB, heap %6.1f MB", s.rss, s.anonymous, s.heap)
}

// cpuOf is the processor time that a process has taken.
func cpuOf(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// sampleOf reads the kernel's figures, several times a second apart, and gives the medians.
func sampleOf(s *harness.Server, times int) sample {
	var rss, anonymous []float64
	for i := range times {
		if i > 0 {
			time.Sleep(time.Second) // a measurement
		}
		rss = append(rss, proc.StatusMB(s.Pid(), "VmRSS:"))
		anonymous = append(anonymous, proc.StatusMB(s.Pid(), "RssAnon:"))
	}
	slices.Sort(rss)
	slices.Sort(anonymous)
	return sample{rss: rss[times/2], anonymous: anonymous[times/2], cpu: cpuOf(s.Pid()), written: proc.Written(s.Pid())}
}

// withHeap adds what the server says of its heap.
func (x sample) withHeap(s *harness.Server) sample {
	for line := range strings.Lines(s.Kubectl("get", "--raw", "/metrics")) {
		if v, is := strings.CutPrefix(line, "go_memstats_heap_alloc_bytes "); is {
			n, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
			x.heap = n / (1 << 20)
		}
	}
	return x
}
