// SPDX-License-Identifier: Apache-2.0

// The containers of a pod, or of the pods that an object makes, as `kubectl describe` has them.

import { kindByWord } from "../api/kinds";
import { hrefOf } from "../api/route";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { visible } from "../base/text";
import { type ContainerFact, containersOf } from "../model/facts";
import { now } from "../model/listing";
import { command, type Detail, environment, mounts, podSpecOf, probes, type Ref, tolerations, volumes } from "../model/podspec";

type Obj = Record<string, any>;

const P = M.pod;

export function PodSections({ object }: { object: Obj }) {
  const spec = podSpecOf(object);
  if (!spec) return null;
  const ns: string = object.metadata.namespace ?? "";
  const isPod = object.kind === "Pod";
  const of = new Map<string, Obj>();
  for (const c of [...(spec.initContainers ?? []), ...(spec.containers ?? []), ...(spec.ephemeralContainers ?? [])]) of.set(c.name, c);
  return (
    <>
      <section class="related">
        <h2>{isPod ? S.object.containers : P.template}</h2>
        <ul class="containers">
          {containersOf({ spec, status: isPod ? object.status : undefined }, now.value).map((c) => (
            <Container key={c.name} fact={c} container={of.get(c.name) ?? {}} spec={spec} ns={ns} state={isPod} />
          ))}
        </ul>
      </section>
      <Pod spec={spec} ns={ns} />
    </>
  );
}

function Container({
  fact: c,
  container,
  spec,
  ns,
  state,
}: {
  fact: ContainerFact;
  container: Obj;
  spec: Obj;
  ns: string;
  state: boolean;
}) {
  const lines: [string, Detail[]][] = [
    [P.environment, environment(container)],
    [P.mounts, mounts(container, spec)],
    [P.probes, probes(container)],
  ];
  const runs = command([...(container.command ?? []), ...(container.args ?? [])]);
  return (
    <li>
      <strong>{visible(c.name)}</strong> {c.init && <span class="faint">{S.object.init}</span>}{" "}
      {state && <span class={c.tone}>{visible(c.state)}</span>}
      {c.restarts > 0 && <span class="passing"> {S.object.restarts(c.restarts)}</span>}
      <div class="faint">{visible(c.image)}</div>
      {c.last && <div class="bad">{S.object.before(visible(c.last))}</div>}
      {(c.ports || c.resources) && <div class="faint">{[c.ports, c.resources].filter(Boolean).join("; ")}</div>}
      {runs && (
        <div>
          <span class="faint">{P.runs}</span> <code>{visible(runs)}</code>
        </div>
      )}
      {lines.map(([title, details]) => details.length > 0 && <Details key={title} title={title} details={details} ns={ns} />)}
    </li>
  );
}

/** FOLDED is from how many lines on a table is folded. */
const FOLDED = 12;

function Details({ title, details, ns }: { title: string; details: Detail[]; ns: string }) {
  return (
    <details open={details.length < FOLDED}>
      <summary>
        {title} <span class="count">{details.length}</span>
      </summary>
      <table class="plain">
        <tbody>
          {details.map((d, i) => (
            <tr key={i}>
              <td>{visible(d.name)}</td>
              <td>
                <Named detail={d} ns={ns} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

function Named({ detail: d, ns }: { detail: Detail; ns: string }) {
  const href = d.ref && hrefTo(d.ref, ns);
  return href ? <a href={href}>{visible(d.value)}</a> : <>{visible(d.value)}</>;
}

function hrefTo(ref: Ref, ns: string): string | undefined {
  const k = kindByWord(ref.resource);
  return k && hrefOf(k, { ns, name: ref.name });
}

function Pod({ spec, ns }: { spec: Obj; ns: string }) {
  const selector = Object.entries((spec.nodeSelector ?? {}) as Record<string, string>).map(([k, v]) => `${k}=${v}`);
  const facts: [string, string][] = [
    [P.restart, spec.restartPolicy === "Always" ? "" : (spec.restartPolicy ?? "")],
    [P.hostNetwork, spec.hostNetwork ? M.extra.yes : ""],
    [P.nodeSelector, selector.join(", ")],
    [P.affinity, Object.keys((spec.affinity ?? {}) as Obj).join(", ")],
    ...tolerations(spec).map((t): [string, string] => [P.toleration, t]),
  ];
  const shown = facts.filter(([, value]) => value);
  const all = volumes(spec);
  return (
    <>
      {shown.length > 0 && (
        <dl class="facts">
          {shown.map(([name, value], i) => (
            <div key={i}>
              <dt>{name}</dt>
              <dd>{visible(value)}</dd>
            </div>
          ))}
        </dl>
      )}
      {all.length > 0 && <Details title={P.volumes} details={all} ns={ns} />}
    </>
  );
}
