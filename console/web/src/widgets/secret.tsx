// SPDX-License-Identifier: Apache-2.0

// A secret's values: hidden until one is asked for, and hidden again with the view.

import { useSignal } from "@preact/signals";
import { copy } from "../base/clipboard";
import { S } from "../base/strings";
import { bytes, visible, visibleLines } from "../base/text";

/** decode gives a base64 value as text; null when it is not UTF-8. */
function decode(value: string): { text: string | null; size: number } {
  const binary = atob(value);
  const raw = Uint8Array.from(binary, (c) => c.charCodeAt(0));
  try {
    return { text: new TextDecoder("utf-8", { fatal: true }).decode(raw), size: raw.length };
  } catch {
    return { text: null, size: raw.length };
  }
}

export function SecretData({ data }: { data: Record<string, string> }) {
  return (
    <section class="related">
      <h2>{S.object.data}</h2>
      <ul class="containers">
        {Object.entries(data).map(([k, v]) => (
          <Value key={k} name={k} value={v} />
        ))}
      </ul>
    </section>
  );
}

function Value({ name, value }: { name: string; value: string }) {
  const shown = useSignal(false);
  const { text, size } = decode(value);
  return (
    <li>
      <strong>{visible(name)}</strong> <span class="faint">{bytes(size)}</span>{" "}
      <button type="button" aria-pressed={shown.value} onClick={() => (shown.value = !shown.value)}>
        {shown.value ? S.secret.hide : S.secret.show}
      </button>
      {text !== null && (
        <button type="button" onClick={() => void copy(text)}>
          {S.copy}
        </button>
      )}
      {shown.value && <pre class="data">{text === null ? S.secret.binary(value) : visibleLines(text)}</pre>}
    </li>
  );
}
