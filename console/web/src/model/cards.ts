// SPDX-License-Identifier: Apache-2.0

// The overview's cards: one for each cause. Pods of one workload are together, with what the workload, its Services and
// its budgets say of themselves.

import type { Row } from "../api/connection";
import type { Finding } from "../api/health";
import { best, cannotMake, clean, conditionWords, findingSentence, podSentence, type Warning } from "./sentences";
import { O } from "../base/overviewstrings";

type Obj = Record<string, any>;

/** Problem is what is wrong with a row of a list. */
export interface Problem {
  id: string;
  word: string;
  row: Row;
  /** reason is the server's word for it. */
  reason: string;
  /** passing problems may end by themselves. */
  passing: boolean;
}

/** CardKind is what a card needs of a kind. */
export interface CardKind {
  id: string;
  kind: string;
  group: string;
  resource: string;
}

export interface Card<K extends CardKind = CardKind> {
  id: string;
  kind: K;
  ns: string;
  name: string;
  pods: Problem[];
  /** problem is what the list of the object's kind says of it. */
  problem: Problem | null;
  findings: Finding[];
  passing: boolean;
}

/** workloadOf is the workload that a pod is of; null for a pod of its own, and for one that its node owns. */
export function workloadOf(row: Row): { kind: string; name: string } | null {
  const owner = row.owner;
  if (!owner || owner.kind === "Node") return null;
  const hash = row.labels?.["pod-template-hash"];
  if (owner.kind === "ReplicaSet" && hash && owner.name.endsWith("-" + hash))
    return { kind: "Deployment", name: owner.name.slice(0, -hash.length - 1) };
  // A CronJob names its jobs by the minute, which has eight digits.
  const job = owner.kind === "Job" && /^(.+)-\d{8}$/.exec(owner.name);
  return job ? { kind: "CronJob", name: job[1] } : { kind: owner.kind, name: owner.name };
}

/** FIRST are the resources of which much else may follow, the worst first. */
const FIRST = ["nodes", "apiservices", "mutatingwebhookconfigurations", "validatingwebhookconfigurations"];

/**
 * cardsOf makes the cards, the worst first. byWord finds a kind by a word, and byPath by the path of a list. What is of
 * a kind that is not known has no card.
 */
export function cardsOf<K extends CardKind>(
  problems: Problem[],
  findings: Finding[],
  byWord: (word: string) => K | undefined,
  byPath: (path: string) => K | undefined,
): Card<K>[] {
  const cards = new Map<string, Card<K>>();
  const card = (kind: K, ns: string, name: string): Card<K> => {
    const id = [kind.resource, kind.group, ns, name].join("/");
    let c = cards.get(id);
    if (!c) cards.set(id, (c = { id, kind, ns, name, pods: [], problem: null, findings: [], passing: true }));
    return c;
  };
  const bad = (c: Card<K>, passing: boolean) => (c.passing = c.passing && passing);
  for (const p of problems) {
    const of = p.word === "pods" ? workloadOf(p.row) : null;
    const kind = (of && byWord(of.kind)) || byWord(p.word);
    if (!kind) continue;
    const c = card(kind, p.row.ns, of && byWord(of.kind) ? of.name : p.row.name);
    if (p.word === "pods") c.pods.push(p);
    else c.problem = p;
    bad(c, p.passing);
  }
  for (const f of findings) {
    const kind = byPath(f.path);
    if (!kind) continue;
    // What needs pods that have a card is not a cause of its own.
    const cause = f.selector && [...cards.values()].find((c) => c.ns === (f.ns ?? "") && c.pods.some((p) => matches(f.selector!, p.row)));
    const c = cause || card(kind, f.ns ?? "", f.name);
    c.findings.push(f);
    if (!cause) bad(c, !!f.passing);
  }
  for (const c of cards.values()) c.pods.sort((a, b) => Number(a.passing) - Number(b.passing));
  const rank = (c: Card) => (c.passing ? 100 : 0) + (FIRST.indexOf(c.kind.resource) + 1 || FIRST.length + (c.pods.length ? 1 : 2));
  return [...cards.values()].sort((a, b) => rank(a) - rank(b) || (a.id < b.id ? -1 : 1));
}

function matches(selector: Record<string, string>, row: Row): boolean {
  const all = Object.entries(selector);
  return all.length > 0 && all.every(([k, v]) => row.labels?.[k] === v);
}

/** warningsAbout are the warnings about a card's objects, the newest first. */
export function warningsAbout(c: Card, all: Warning[]): Warning[] {
  const ns = c.ns || "default";
  const own = c.kind.kind.toLowerCase() + "/" + c.name;
  const pods = new Set(c.pods.map((p) => "pod/" + p.row.name));
  // A Deployment's pods are made by its ReplicaSets, and a CronJob's by its Jobs.
  const made = c.kind.kind === "Deployment" ? "replicaset/" : c.kind.kind === "CronJob" ? "job/" : "";
  const isMade = (object: string) =>
    !!made && object.startsWith(made + c.name + "-") && /^[a-z0-9]+$/.test(object.slice((made + c.name).length + 1));
  return all.filter((w) => w.ns === ns && (w.object === own || pods.has(w.object) || isMade(w.object)));
}

/**
 * sentenceOf is a card's sentence. The object is the one of objectOf: the worst pod, or what the card is about; null while
 * it is not read. Warnings are those of warningsAbout.
 */
export function sentenceOf(c: Card, object: Obj | null, warnings: Warning[]): string {
  const pod = c.pods[0];
  if (pod)
    return (
      (object &&
        podSentence(
          object,
          warnings.filter((w) => w.object === "pod/" + pod.row.name),
        )) ||
      pod.reason
    );
  const failed = c.findings.find((f) => f.what === "cannotMake")?.text ?? warnings.find((w) => w.reason === "FailedCreate")?.message;
  if (failed) return cannotMake(failed);
  // The number of pods says least.
  const f = c.findings.find((x) => x.what !== "unavailable") ?? c.findings[0];
  if (f) return findingSentence(f);
  const why = (object && conditionWords(object)[0]) ?? "";
  const w = best(warnings);
  const said = why || (w ? clean(w.message) : "");
  if (c.problem?.word === "persistentvolumeclaims") return O.claim(c.problem.reason, said);
  return [c.problem?.reason ?? "", said].filter(Boolean).join(": ");
}

/** needsObject is whether a card's sentence needs the object. */
export function needsObject(c: Card): boolean {
  return c.pods.length > 0 || c.findings.length === 0;
}
