// SPDX-License-Identifier: Apache-2.0

// Colours in logs: the codes of ECMA-48 "select graphic rendition" become classes, anything else stays text.

export interface Span {
  text: string;
  style: string;
}

const SGR = /\u001b\[([0-9;]*)m/g;

/** plainText is text without colour codes. */
export function plainText(text: string): string {
  return text.includes("\u001b") ? text.replace(SGR, "") : text;
}

/** spansOf cuts text where its colour changes. */
export function spansOf(text: string): Span[] {
  const out: Span[] = [];
  let color = "";
  let bold = false;
  let at = 0;
  const push = (end: number) => {
    if (end > at) out.push({ text: text.slice(at, end), style: (color && "a" + color) + (bold ? " bold" : "") });
  };
  for (const m of text.matchAll(SGR)) {
    push(m.index);
    at = m.index + m[0].length;
    const codes = m[1].split(";").map(Number);
    for (let i = 0; i < codes.length; i++) {
      const c = codes[i];
      if (c === 0) [color, bold] = ["", false];
      else if (c === 1) bold = true;
      else if (c === 22) bold = false;
      else if (c >= 30 && c <= 37) color = String(c - 30);
      else if (c >= 90 && c <= 97) color = String(c - 90);
      else if (c === 39) color = "";
      else if (c === 38 || c === 48) i += codes[i + 1] === 5 ? 2 : 4;
    }
  }
  push(text.length);
  return out;
}
