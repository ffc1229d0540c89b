// SPDX-License-Identifier: Apache-2.0

// The page's state in the URL's fragment: #/VIEW/KIND/NAMESPACE/NAME?key=value. Everything that a person would want to
// find again after "reload", "back" or in a bookmark is in it, and never a token.

import { computed, signal } from "@preact/signals";

export type View = "overview" | "list" | "object" | "logs" | "shell" | "edit" | "create" | "map" | "helm" | "search";

export interface Route {
  view: View;
  kind: string;
  ns: string;
  name: string;
  params: Record<string, string>;
}

const VIEWS = new Set(["list", "object", "logs", "shell", "edit", "create", "map", "helm", "search"]);

export function parse(hash: string): Route {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const parts = path.split("/").map(decode);
  if (parts[0] === "events" && parts.length === 1) parts.splice(0, 1, "list", "events.v1");
  const view = VIEWS.has(parts[0]) ? (parts[0] as View) : "overview";
  const params: Record<string, string> = {};
  for (const [k, v] of new URLSearchParams(query)) params[k] = v;
  return { view, kind: parts[1] ?? "", ns: parts[2] === "-" ? "" : (parts[2] ?? ""), name: parts[3] ?? "", params };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function format(r: Partial<Route> & { view: View }): string {
  const parts: string[] = [];
  if (r.view !== "overview") parts.push(r.view);
  if (r.kind) parts.push(r.kind);
  if (r.name) parts.push(r.ns || "-", r.name);
  const query = new URLSearchParams();
  for (const [k, v] of Object.entries(r.params ?? {})) if (v) query.set(k, v);
  const text = query.toString();
  return "#/" + parts.map(encodeURIComponent).join("/") + (text ? "?" + text : "");
}

export const route = signal<Route>(parse(location.hash));

let depth = 0;

// The address can be set from outside, by a link in another site and also later by the page that opened this one. What
// acts as soon as it is shown must know whether the user came to it in these pages.
let expected = "";
let own: Route | null = null;

/** isOwn says whether the user came to this view in these pages, and not by an address. */
export function isOwn(): boolean {
  return own === route.peek();
}

/** claim makes the view the user's own, after they have asked for what it does. */
export function claim(): void {
  own = route.peek();
}

/** disown is for the end of a session: the next user has not come to this view. */
export function disown(): void {
  own = null;
}

window.addEventListener("hashchange", () => {
  depth++;
  clearTimeout(writing);
  writing = undefined;
  shown = location.hash;
  const next = parse(location.hash);
  own = location.hash === expected ? next : null;
  expected = "";
  route.value = next;
});

/** go opens another view; the browser's "back" returns to this one. */
export function go(r: Partial<Route> & { view: View }): void {
  if (writing) writeAddress();
  const hash = format(r);
  // The same address gives no event.
  if (hash !== location.hash) expected = hash;
  location.hash = hash;
}

/** follow opens an address. "Back" finds this view with the filter that was just typed. */
export function follow(href: string): void {
  if (writing) writeAddress();
  location.hash = href;
}

/** back returns to the view before, or to the overview when there was none. */
export function back(): void {
  if (writing) writeAddress();
  if (depth > 0) {
    depth -= 2;
    history.back();
  } else if (route.value.view === "object") {
    go({ view: "list", kind: route.value.kind });
  } else if (route.value.view !== "overview") {
    go({ view: "overview" });
  }
}

let writing: ReturnType<typeof setTimeout> | undefined;
/** shown is the address of the view that is shown. */
let shown = location.hash;

function writeAddress(): void {
  clearTimeout(writing);
  writing = undefined;
  // Another address is on its way: its event has not come yet.
  if (location.hash !== shown) return;
  history.replaceState(null, "", format(route.value));
  shown = location.hash;
}

/** setParams changes parameters of this view without a new entry in the history. */
export function setParams(change: Record<string, string>): void {
  const next = { ...route.value, params: { ...route.value.params, ...change } };
  if (isOwn()) own = next;
  route.value = next;
  // Browsers limit how often the address may change: typing changes it after a pause only.
  clearTimeout(writing);
  writing = setTimeout(writeAddress, 150);
}

const remembered = signal<string | null>(null);

/** initialNamespace sets where lists begin in a new tab. */
export function initialNamespace(ns: string): void {
  if (remembered.value === null) remembered.value = ns;
}

/** forgetNamespace is for a user who logs out: the next one begins where they may. */
export function forgetNamespace(): void {
  remembered.value = null;
}

/** namespace is the namespace of lists; empty for all. */
export const namespace = computed(() => {
  const ns = route.value.params.ns;
  return ns === "*" ? "" : (ns ?? remembered.value ?? "");
});

/** SCOPED are the views of a namespace, or of all. */
const SCOPED = new Set<View>(["list", "overview", "map", "helm", "search"]);

/** setNamespace changes it for this list and later ones. */
export function setNamespace(ns: string): void {
  remembered.value = ns;
  if (SCOPED.has(route.value.view)) setParams({ ns: ns || "*" });
}

/** rememberNamespace is for views that stand in a namespace by their address. */
export function rememberNamespace(): void {
  const ns = route.value.params.ns;
  if (ns !== undefined) remembered.value = ns === "*" ? "" : ns;
}

/** hrefOf is where a row's object is shown. */
export function hrefOf(k: { id: string }, row: { ns: string; name: string }, tab = ""): string {
  return format({ view: "object", kind: k.id, ns: row.ns, name: row.name, params: tab ? { tab } : {} });
}
