// SPDX-License-Identifier: Apache-2.0

// Words of a shell. bash, zsh and fish read each as it was; dash and busybox may read another word, but always one, and
// nothing in it is run.

/** PLAIN words mean themselves in every shell. A "=" at the beginning would be replaced by zsh. */
const PLAIN = /^(?!=)[A-Za-z0-9._/:=,@%+-]+$/;

/** UNSEEN are characters that cannot be seen, or that change how others are seen. */
const UNSEEN = /[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;
const ESCAPED = /[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}\\']|(?! )\p{Zs}/gu;

/** IMPOSSIBLE characters are in no word of a shell: the zero byte, and halves of pairs. */
const IMPOSSIBLE = /[\0\p{Cs}]/u;

/** quote makes one word of a shell; null when there is no such word. */
export function quote(word: string): string | null {
  if (IMPOSSIBLE.test(word)) return null;
  if (PLAIN.test(word)) return word;
  // A backslash, too: in a word of fish's between quotes it is no plain character.
  if (UNSEEN.test(word) || word.includes("\\")) return "$'" + word.replace(ESCAPED, escape) + "'";
  return "'" + word.replace(/'/g, "'\\''") + "'";
}

function escape(c: string): string {
  // By their numbers: shells differ in what "\\'" is in such a word.
  if (c === "\\" || c === "'") return "\\x" + c.charCodeAt(0).toString(16);
  const point = c.codePointAt(0)!;
  const hex = point.toString(16);
  // Each form has all its digits: none of the characters after it can be taken for one. "\x" is a byte, not a character.
  return point > 0xffff ? "\\U" + hex.padStart(8, "0") : point > 0x7f ? "\\u" + hex.padStart(4, "0") : "\\x" + hex.padStart(2, "0");
}
