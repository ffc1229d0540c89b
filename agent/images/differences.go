// SPDX-License-Identifier: Apache-2.0

package images

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Differences returns a sentence for each name for which servers publish different images. own is the name of this
// server. Servers that do not answer within a second are left out.
func (r *Remote) Differences(ctx context.Context, own string) ([]string, error) {
	images, err := r.Store.Publish(ctx, "")
	if err != nil {
		return nil, err
	}
	return differences(append(r.ask(ctx, NamesPath), answer{server: own, images: images})), nil
}

// differences compares what servers publish.
func differences(answers []answer) []string {
	slices.SortFunc(answers, func(a, b answer) int { return cmp.Compare(a.server, b.server) })
	type version struct {
		server string
		image  Published
	}
	versions := map[string][]version{} // by name and platform
	for _, a := range answers {
		for _, p := range a.images {
			key := fmt.Sprintf("%s (%s)", p.Name, p.Platform)
			versions[key] = append(versions[key], version{a.server, p})
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		newest, differ, found := versions[name][0], false, []string{}
		for _, v := range versions[name] {
			differ = differ || v.image.Target.Digest != newest.image.Target.Digest
			if v.image.Imported.After(newest.image.Imported) {
				newest = v
			}
			found = append(found, fmt.Sprintf("%s has %.19s, imported %s", v.server, v.image.Target.Digest,
				v.image.Imported.Format("2006-01-02 15:04")))
		}
		if differ {
			out = append(out, fmt.Sprintf("the servers have imported different images named %s: %s. Nodes without the image fetch that of %s, imported "+
				"last by the servers' clocks. Put the same archive into the images folder of each of these servers, or remove the others",
				name, strings.Join(found, "; "), newest.server))
		}
	}
	return out
}
