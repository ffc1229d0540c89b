// SPDX-License-Identifier: Apache-2.0

// What is wrong in a text: each mistake with its line, which leads to it in the editor.

import { E } from "../base/editstrings";
import { visible, visibleLines } from "../base/text";

export interface Problem {
  /** line counts from 1. It is missing when no line is known. */
  line?: number;
  text: string;
}

/** Problems lists mistakes. said are the server's own words, or "". jump goes to the mistake of an index. */
export function Problems({ list, said, jump }: { list: Problem[]; said: string; jump(i: number): void }) {
  return (
    <>
      <ul class="mistakes">
        {list.map((p, i) => (
          <li key={i}>
            {p.line ? (
              <button type="button" class="link" onClick={() => jump(i)}>
                {E.problems.line(p.line)}
              </button>
            ) : null}{" "}
            <span class="bad">{visible(p.text)}</span>
          </li>
        ))}
      </ul>
      {said && (
        <details>
          <summary>{E.problems.said}</summary>
          <p class="faint">{visibleLines(said)}</p>
        </details>
      )}
    </>
  );
}

/** focusFirst puts the focus on the first mistake's line. */
export function focusFirst(): void {
  requestAnimationFrame(() => document.querySelector<HTMLElement>(".mistakes button")?.focus());
}
