// SPDX-License-Identifier: Apache-2.0

// Commands for a shell that do what a button does. Names come from the cluster or from an address, so no word is put
// into a command but by these functions.

import { type Kind, kindByWord } from "../api/kinds";
import { quote } from "../base/quote";

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
