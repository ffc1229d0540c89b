// SPDX-License-Identifier: Apache-2.0

// The menu of kinds, in groups that can be folded, with how many objects of each are broken.

import { useSignal } from "@preact/signals";
import { kindByWord, label } from "../api/kinds";
import { NOWHERE, refusal } from "../api/permissions";
import { format, namespace, route } from "../api/route";
import { S } from "../base/strings";
import { broken } from "../model/broken";
import { commandOpen } from "./commandbar";

/** GROUPS are kinds by the names of their resources, with the group where another kind could have the name. */
const GROUPS = [
  "pods deployments statefulsets daemonsets replicasets jobs cronjobs horizontalpodautoscalers",
  "services ingresses gateways.gateway.networking.k8s.io httproutes networkpolicies",
  "persistentvolumeclaims persistentvolumes storageclasses",
  "configmaps secrets",
  "serviceaccounts roles rolebindings clusterroles clusterrolebindings",
  "nodes namespaces events customresourcedefinitions",
];

/** FOLDED is where the tab keeps the groups that are folded. On a phone all are at first, since they stand in one line. */
const FOLDED = "folded";
const first = () => (window.matchMedia("(max-width: 640px)").matches ? S.groups.join() : S.groups[4]);

export function Menu() {
  const folded = useSignal((sessionStorage.getItem(FOLDED) ?? first()).split(","));
  const toggle = (name: string) => {
    const now = folded.value;
    folded.value = now.includes(name) ? now.filter((n) => n !== name) : [...now, name];
    sessionStorage.setItem(FOLDED, folded.value.join());
  };
  const views = (["helm", "search", "create"] as const).map((view) => [view, view === "create" ? S.create.title : S.views[view]] as const);
  return (
    <nav aria-label={S.menu}>
      <Item href="#/" here={route.value.view === "overview"} text={S.overview.title} />
      {GROUPS.map((words, i) => {
        const name = S.groups[i];
        const kinds = words.split(" ").flatMap((word) => {
          const k = kindByWord(word);
          // Rules of one namespace do not say what may be listed in all.
          return k && !((!k.namespaced || namespace.value) && refusal("list", k, k.namespaced ? namespace.value : NOWHERE)) ? [k] : [];
        });
        const open = !folded.value.includes(name);
        const bad = (id: string) => broken.value.get(id) ?? 0;
        return (
          kinds.length > 0 && (
            <div key={name} role="group" aria-label={name}>
              <button type="button" class="group" aria-expanded={open} onClick={() => toggle(name)}>
                {name}
                {!open && <Bad n={kinds.reduce((n, k) => n + bad(k.id), 0)} />}
              </button>
              {open &&
                kinds.map((k) => (
                  <Item
                    key={k.id}
                    href={format({ view: "list", kind: k.id })}
                    here={route.value.kind === k.id}
                    text={label(k)}
                    n={bad(k.id)}
                  />
                ))}
            </div>
          )
        );
      })}
      {views.map(([view, text]) => (
        <Item key={view} href={format({ view })} here={route.value.view === view} text={text} />
      ))}
      <button type="button" onClick={() => (commandOpen.value = true)}>
        {S.allKinds}
      </button>
    </nav>
  );
}

function Item({ href, here, text, n = 0 }: { href: string; here: boolean; text: string; n?: number }) {
  return (
    <a href={href} aria-current={here ? "page" : undefined}>
      {text}
      <Bad n={n} />
    </a>
  );
}

function Bad({ n }: { n: number }) {
  return n > 0 ? (
    <>
      {" "}
      <span class="bad" title={S.overview.problems(n)}>
        {n}
      </span>
    </>
  ) : null;
}
