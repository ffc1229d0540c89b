// SPDX-License-Identifier: Apache-2.0

// Search over all kinds: objects whose name or labels have a text, as the server finds them.

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { type Client, type Found, type Message, type Request, Stream } from "../api/connection";
import { useKeys } from "../base/keys";
import { type Kind, kinds, label, listPath } from "../api/kinds";
import { now } from "../model/listing";
import { chooseNamespace } from "../actions/namespaces";
import { back, hrefOf, namespace, route, setParams } from "../api/route";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { age, visible } from "../base/text";

/** WAIT is how long the text stands still before it is searched for, in milliseconds. */
const WAIT = 400;
const SHORTEST = 2;

interface Result {
  found: Found[];
  done: number;
  of: number;
  full: boolean;
  over: boolean;
  trouble: string[];
}

const NOTHING: Result = { found: [], done: 0, of: 0, full: false, over: false, trouble: [] };

/** searched are the kinds of objects, without events: these say what was, and are often as many as all others. */
function searched(ns: string): Map<string, Kind> {
  return new Map(
    kinds.value
      .filter((k) => k.verbs.includes("list") && k.resource !== "events" && (k.namespaced || !ns) && !k.group.endsWith("metrics.k8s.io"))
      .map((k) => [listPath(k, ns), k]),
  );
}

export function SearchView() {
  if (kinds.value.length === 0) return <p class="empty">{S.loading}</p>;
  return <Search key={namespace.value} ns={namespace.value} />;
}

function Search({ ns }: { ns: string }) {
  const text = (route.value.params.text ?? "").trim();
  const result = useSignal<Result>(NOTHING);
  const field = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => field.current?.focus(), []);
  useEffect(() => {
    result.value = NOTHING;
    if (text.length < SHORTEST) return;
    let stream: Stream | null = null;
    const timer = setTimeout(() => {
      const request: Request = { op: "search", path: "", query: { text }, paths: [...searched(ns).keys()] };
      const client: Client = {
        watch: false,
        resume: () => {
          result.value = NOTHING;
          return request;
        },
        message(m: Message) {
          const r = result.value;
          if (m.type === "found") {
            result.value = {
              found: [...r.found, ...(m.found ?? [])],
              done: m.done,
              of: m.of,
              full: m.full,
              over: false,
              trouble: m.trouble ? [...r.trouble, m.trouble].slice(0, 10) : r.trouble,
            };
          } else if (m.type === "end") {
            result.value = { ...r, over: true, trouble: m.message ? [...r.trouble, m.message] : r.trouble };
          }
        },
      };
      stream = new Stream(request, client);
    }, WAIT);
    return () => {
      clearTimeout(timer);
      stream?.close();
    };
  }, [text]);
  useKeys([
    { key: "j ArrowDown", label: S.keys.down, run: () => focusFound(1), hint: true },
    { key: "k ArrowUp", label: S.keys.up, run: () => focusFound(-1), hint: true },
    { key: "/", label: M.search.text, run: () => field.current?.focus(), hint: true },
    { key: "n", label: S.keys.namespace, run: () => void chooseNamespace(), hint: true },
    { key: "Escape", label: S.keys.back, run: back, hint: true },
  ]);
  const r = result.value;
  const byPath = searched(ns);
  return (
    <section class="view" aria-label={M.search.title}>
      <div class="bar">
        <h1>{M.search.title}</h1>
        <input
          ref={field}
          id="filter"
          type="search"
          aria-label={M.search.text}
          placeholder={M.search.text}
          autocomplete="off"
          autocapitalize="off"
          spellcheck={false}
          value={route.value.params.text ?? ""}
          onInput={(e) => setParams({ text: e.currentTarget.value })}
          onKeyDown={(e) => {
            if (e.key === "Escape") field.current?.blur();
            else if (e.key === "ArrowDown" || e.key === "Enter") focusFound(1);
            else return;
            e.preventDefault();
          }}
        />
        <span class="faint">{S.overview.scope(ns)}</span>
        <span class="count" role="status">
          {text.length < SHORTEST
            ? ""
            : r.full
              ? M.search.full(r.found.length)
              : r.over
                ? M.search.found(r.found.length)
                : M.search.running(r.found.length, r.done, r.of)}
        </span>
      </div>
      <div class="pane scroll">
        {r.trouble.map((t) => (
          <p key={t} class="passing">
            {visible(t)}
          </p>
        ))}
        {text.length < SHORTEST && <p class="faint">{M.search.hint}</p>}
        {r.over && r.found.length === 0 && text.length >= SHORTEST && <p class="empty">{M.search.none(text)}</p>}
        {r.found.length > 0 && (
          <table class="plain stack found">
            <thead>
              <tr>
                {M.search.columns.map((c) => (
                  <th key={c} scope="col">
                    {c}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {r.found.map((f) => {
                const k = byPath.get(f.path);
                return (
                  k && (
                    <tr key={f.path + f.ns + "/" + f.name}>
                      <td>{label(k)}</td>
                      <td>{visible(f.ns)}</td>
                      <td>
                        <a href={hrefOf(k, { ns: f.ns ?? "", name: f.name })}>{visible(f.name)}</a>
                      </td>
                      <td>{f.label && <span class="label">{visible(f.label)}</span>}</td>
                      <td>{f.created ? age(f.created, now.value) : ""}</td>
                    </tr>
                  )
                );
              })}
            </tbody>
          </table>
        )}
      </div>
    </section>
  );
}

function focusFound(by: number): void {
  const links = [...document.querySelectorAll<HTMLElement>(".found a")];
  const at = links.indexOf(document.activeElement as HTMLElement);
  links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
}
