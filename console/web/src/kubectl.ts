// SPDX-License-Identifier: Apache-2.0

// Commands for a shell that do what a button does. Names come from the cluster or from an address, so no word is put
// into a command but by these functions.

import { type Kind, kindByWord } from "./kinds";

/** PLAIN words mean themselves in every shell. A "=" at the beginning would be replaced by zsh. */
const PLAIN = /^(?!=)[A-Za-z0-9._/:=,@%+-]+$/;

/** UNSEEN are characters that cannot be seen, or that change how others are seen. */
const UNSEEN = /[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;
const ESCAPED = /[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}\\']|(?! )\p{Zs}/gu;

/** IMPOSSIBLE characters are in no word of a shell: the zero byte, and halves of pairs. */
const IMPOSSIBLE = /[\0\p{Cs}]/u;

/** quote makes one word of a shell; null when there is no such word. */
function quote(word: string): string | null {
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

interface Parts {
  /** verb is one of ours: "delete", "rollout restart". */
  verb: string;
  /** names are the words without options: kinds and names. */
  names?: string[];
  /** options are whole words of options and their values. */
  options?: string[];
  ns?: string;
  /** program is what runs in a container. */
  program?: string[];
}

/** command writes one command; it is empty when a word of it cannot be written safely. */
export function command({ verb, names = [], options = [], ns = "", program }: Parts): string {
  // A value that looks like an option is written in one word with its own.
  const all = [...options, ...(!ns ? [] : ns.startsWith("-") ? ["--namespace=" + ns] : ["-n", ns])];
  const dashed = names.some((n) => n.startsWith("-"));
  const words = [...(dashed ? [...all, "--", ...names] : [...names, ...all]), ...(program ? ["--", ...program] : [])].map(quote);
  return words.includes(null) ? "" : ["kubectl", verb, ...words].join(" ");
}

const BUILT_IN = /^(|apps|batch|autoscaling|policy)$|\.k8s\.io$/;

/** resourceOf is the word by which kubectl finds a kind, and no other of a like name. */
function resourceOf(k: Kind): string {
  const short = k.singular || k.resource;
  if (BUILT_IN.test(k.group) && kindByWord(short) === k) return short;
  return k.group ? k.resource + "." + k.group : k.resource + "." + k.version + ".";
}

/** commandFor writes a command for objects of one kind, a line for each namespace; empty as a whole when one cannot be written. */
export function commandFor(verb: string, targets: { kind: Kind; ns: string; name: string }[], ...options: string[]): string {
  const groups = new Map<string, string[]>();
  for (const t of targets) groups.set(t.ns, [...(groups.get(t.ns) ?? []), t.name]);
  const lines = [...groups].map(([ns, names]) => command({ verb, names: [resourceOf(targets[0].kind), ...names], options, ns }));
  return lines.includes("") ? "" : lines.join("\n");
}

/** helmCommand writes a command of Helm's for a release; it is empty when a word of it cannot be written safely. */
export function helmCommand(verb: string, names: string[], ns: string, driver: string): string {
  if (names.some((n) => n.startsWith("-"))) return "";
  const words = [...names, "--namespace=" + ns].map(quote);
  return words.includes(null) ? "" : [...(driver === "configmaps" ? ["HELM_DRIVER=configmap"] : []), "helm", verb, ...words].join(" ");
}
