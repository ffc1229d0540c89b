// SPDX-License-Identifier: Apache-2.0

package addrwatch

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// machine is one whose addresses the test says.
type machine struct {
	mu     sync.Mutex
	has    []netip.Addr
	events chan struct{}
	gone   [][]netip.Addr
	failed []error
}

func (m *machine) set(has []netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.has = has
}

func (m *machine) get() []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.has
}

func (m *machine) options(have ...netip.Addr) Options {
	return Options{
		Have:   have,
		Owns:   func(ip netip.Addr) (bool, error) { return slices.Contains(m.get(), ip), nil },
		Find:   func() ([]netip.Addr, error) { return m.get(), nil },
		Gone:   func(ips []netip.Addr) { m.gone = append(m.gone, ips) },
		Failed: func(err error) { m.failed = append(m.failed, err) },
		events: func(context.Context) (<-chan struct{}, error) {
			return m.events, nil
		},
	}
}

func TestLastingAddressChangeIsReported(t *testing.T) {
	a, b, six := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.9.0.7"), netip.MustParseAddr("fd00::5")
	for name, tt := range map[string]struct {
		have []netip.Addr
		// steps are what the machine has, a second after one another.
		steps [][]netip.Addr
		want  []netip.Addr
		gone  int // how often Gone is called
	}{
		"another address":                  {[]netip.Addr{a}, [][]netip.Addr{{b}}, []netip.Addr{b}, 0},
		"another one beside it":            {[]netip.Addr{a}, [][]netip.Addr{{b, a}}, nil, 0},
		"away for a moment":                {[]netip.Addr{a}, [][]netip.Addr{{}, {a}}, nil, 0},
		"away, another one after a while":  {[]netip.Addr{a}, [][]netip.Addr{{}, {}, {}, {}, {}, {b}}, []netip.Addr{b}, 1},
		"away, back after a while":         {[]netip.Addr{a}, [][]netip.Addr{{}, {}, {}, {}, {}, {a}}, nil, 2},
		"one of two without a replacement": {[]netip.Addr{a, six}, [][]netip.Addr{{b}}, nil, 1},
		"both":                             {[]netip.Addr{a, six}, [][]netip.Addr{{b, netip.MustParseAddr("fd01::5")}}, []netip.Addr{b, netip.MustParseAddr("fd01::5")}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &machine{has: tt.have, events: make(chan struct{}, 1)}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				go func() {
					for _, has := range tt.steps {
						time.Sleep(time.Second) // fake time
						m.set(has)
						select {
						case m.events <- struct{}{}:
						default: // it is seen with the one before
						}
					}
				}()
				got := Changed(ctx, m.options(tt.have...))
				testenv.False(t, !slices.Equal(got, tt.want) || len(m.gone) != tt.gone, "%v, want %v; Gone %v times", got, tt.want, m.gone)
			})
		})
	}
}

// TestLostEventsCauseAPoll: when the kernel could not tell everything it is asked again.
func TestLostEventsCauseAPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.9.0.7")
		m := &machine{has: []netip.Addr{a}}
		o := m.options(a)
		asked := 0
		o.events = func(context.Context) (<-chan struct{}, error) {
			if asked++; asked == 3 {
				m.set([]netip.Addr{b})
			}
			c := make(chan struct{})
			close(c)
			return c, nil
		}
		if got := Changed(t.Context(), o); !slices.Equal(got, []netip.Addr{b}) || asked != 3 {
			t.Errorf("%v after %d questions", got, asked)
		}
	})
}

// TestWhatFailsIsTriedAgain: a machine out of file descriptors for a minute still notices its new address, and says
// once why it could not look.
func TestWhatFailsIsTriedAgain(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.9.0.7")
	for name, fail := range map[string]func(o *Options, fails func() error){
		"the kernel's news": func(o *Options, fails func() error) {
			whole := o.events
			o.events = func(ctx context.Context) (<-chan struct{}, error) {
				if err := fails(); err != nil {
					return nil, err
				}
				return whole(ctx)
			}
		},
		"whether it has an address": func(o *Options, fails func() error) {
			whole := o.Owns
			o.Owns = func(ip netip.Addr) (bool, error) {
				if err := fails(); err != nil {
					return false, err
				}
				return whole(ip)
			}
		},
		"which others it has": func(o *Options, fails func() error) {
			whole := o.Find
			o.Find = func() ([]netip.Addr, error) {
				if err := fails(); err != nil {
					return nil, err
				}
				return whole()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &machine{has: []netip.Addr{b}, events: make(chan struct{}, 1)}
				o, began := m.options(a), time.Now()
				fail(&o, func() error {
					if time.Since(began) < time.Minute {
						return errors.New("too many open files")
					}
					return nil
				})
				if got := Changed(t.Context(), o); !slices.Equal(got, []netip.Addr{b}) || time.Since(began) > 2*time.Minute || len(m.failed) != 1 || m.gone != nil {
					t.Errorf("%v after %v; said %v, and that %v is gone", got, time.Since(began), m.failed, m.gone)
				}
			})
		})
	}
}

// TestAddressThatBecomesUsefulLater: the kernel tells of an address, and not of the route that its link gets a minute
// later.
func TestAddressThatBecomesUsefulLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.9.0.7")
		m := &machine{has: []netip.Addr{b}, events: make(chan struct{}, 1)}
		o, began := m.options(a), time.Now()
		o.Find = func() ([]netip.Addr, error) {
			if time.Since(began) < time.Minute {
				return nil, nil
			}
			return m.get(), nil
		}
		if got := Changed(t.Context(), o); !slices.Equal(got, []netip.Addr{b}) || time.Since(began) > 2*time.Minute || len(m.gone) != 1 {
			t.Errorf("%v after %v; Gone %v times", got, time.Since(began), m.gone)
		}
	})
}

// TestStopWhileAddressIsLost: a process that is stopped while its address is gone does not say that it is back.
func TestStopWhileAddressIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{events: make(chan struct{}, 1)}
		ctx, cancel := context.WithTimeout(t.Context(), goneFor+eventTimeout+time.Second) // it looks a second time then
		defer cancel()
		if got := Changed(ctx, m.options(netip.MustParseAddr("10.0.0.5"))); got != nil || len(m.gone) != 1 || m.failed != nil {
			t.Errorf("%v; Gone %v times; said %v", got, m.gone, m.failed)
		}
	})
}
