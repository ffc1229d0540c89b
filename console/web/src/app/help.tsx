// SPDX-License-Identifier: Apache-2.0

// The list of keys that work in the view from which it was opened.

import { layers } from "../base/keys";
import { S } from "../base/strings";

export function Help() {
  const seen = new Set<string>();
  const bindings = [...layers.value]
    .reverse()
    .flatMap((l) => l.bindings)
    .filter((b) => !seen.has(b.key) && seen.add(b.key));
  return (
    <div tabIndex={0} data-first>
      <dl class="keys">
        {bindings.map((b) => (
          <div key={b.key}>
            <dt>
              {b.key.split(" ").map((k) => (
                <kbd key={k}>{k}</kbd>
              ))}
            </dt>
            <dd>{b.label}</dd>
          </div>
        ))}
      </dl>
      <h3>{S.filter.label}</h3>
      <p>{S.filter.help}</p>
      <h3>{S.command.label}</h3>
      <p>{S.help.command}</p>
    </div>
  );
}
