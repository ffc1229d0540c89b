// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// maxSeconds limits time-outs.
const maxSeconds = 7 * 24 * 3600

// bodySize reads the annotation that limits the body of a request.
func (o *options) bodySize() {
	if text, ok := o.annotations["proxy-body-size"]; ok {
		n, good := size(text)
		if !good {
			o.refuseAnnotation("proxy-body-size", "which is no size such as 8m")
		}
		o.policy.BodyLimit = n
	}
}

// timeouts reads the annotations about time-outs.
func (o *options) timeouts() {
	for _, name := range []string{"proxy-send-timeout", "proxy-read-timeout"} { // the last has precedence
		if text, ok := o.annotations[name]; ok {
			n, err := strconv.Atoi(strings.TrimSuffix(text, "s"))
			if err != nil || n < 1 || n > maxSeconds {
				o.refuseAnnotation(name, "which is no number of seconds")
				continue
			}
			o.policy.IdleSeconds = n
		}
	}
}

// size reads a size of nginx: a number of bytes, or of KiB, MiB or GiB with the suffix k, m or g.
func size(text string) (int64, bool) {
	shift := 0
	if text != "" {
		switch text[len(text)-1] | 0x20 {
		case 'k':
			shift = 10
		case 'm':
			shift = 20
		case 'g':
			shift = 30
		}
		if shift > 0 {
			text = text[:len(text)-1]
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, false
	}
	return n << shift, true
}

// limits reads the annotations that limit the requests and connections of one client.
func (o *options) limits() {
	const most = 1 << 30
	l := table.Limit{
		PerSecond: o.number("limit-rps", 0, most, 0), PerMinute: o.number("limit-rpm", 0, most, 0),
		Connections: o.number("limit-connections", 0, most, 0),
		Burst:       o.number("limit-burst-multiplier", 1, 1<<20, 5),
	}
	name := "limit-allowlist"
	if _, ok := o.annotations[name]; !ok {
		name = "limit-whitelist"
	}
	l.Except = o.networks(name)
	if l.PerSecond+l.PerMinute+l.Connections > 0 {
		o.policy.Limit = &l
	}
}

var (
	originPattern = regexp.MustCompile(`^[A-Za-z][-+.A-Za-z0-9]*://(\*\.)?[-A-Za-z0-9.\[\]:]+$`)
	nameList      = regexp.MustCompile(`^[-A-Za-z0-9_]+([ ]*,[ ]*[-A-Za-z0-9_]+)*$`)
	exposeList    = regexp.MustCompile(`^([-A-Za-z0-9_]+|\*)([ ]*,[ ]*([-A-Za-z0-9_]+|\*))*$`)
)

// cors reads the annotations about requests of scripts from other origins.
func (o *options) cors() {
	on := false
	if o.flag("enable-cors", &on); !on {
		return
	}
	c := &table.CORS{Credentials: true, MaxAgeSeconds: o.number("cors-max-age", 0, math.MaxInt32, 1728000),
		Origins: o.list("cors-allow-origin")}
	o.flag("cors-allow-credentials", &c.Credentials)
	for _, a := range []struct {
		name, without string
		to            *string
		form          *regexp.Regexp
	}{
		{"cors-allow-methods", "GET, PUT, POST, DELETE, PATCH, OPTIONS", &c.Methods, nameList},
		{"cors-allow-headers",
			"DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,Authorization", &c.Headers,
			nameList},
		{"cors-expose-headers", "", &c.Expose, exposeList},
	} {
		*a.to = a.without
		if text, ok := o.annotations[a.name]; ok {
			if !a.form.MatchString(text) {
				o.refuseAnnotation(a.name, "which is no list of names")
			}
			*a.to = text
		}
	}
	if len(c.Origins) == 0 {
		c.Origins = []string{"*"}
	}
	for _, text := range c.Origins {
		if text != "*" && text != "null" && !originPattern.MatchString(text) {
			o.refuseAnnotation("cors-allow-origin", "in which a part is no origin")
		}
	}
	o.policy.CORS = c
}
