// SPDX-License-Identifier: Apache-2.0

// A unified diff with its lines coloured.

import { E } from "../base/editstrings";
import { visibleLines } from "../base/text";

function tone(line: string): string {
  if (line.startsWith("+++") || line.startsWith("---")) return "faint";
  return line.startsWith("+") ? "added" : line.startsWith("-") ? "removed" : line.startsWith("@@") ? "faint" : "";
}

export function Diff({ text }: { text: string }) {
  const lines = visibleLines(text).replace(/\n$/, "").split("\n");
  return (
    <pre class="diff" tabIndex={0} role="region" aria-label={E.edit.diff}>
      {lines.map((l, i) => (
        <div key={i} class={tone(l)}>
          {l || " "}
        </div>
      ))}
    </pre>
  );
}
