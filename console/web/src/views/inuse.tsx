// SPDX-License-Identifier: Apache-2.0

// What the page of a pod, a workload or a node says of CPU and memory: what is used, requested and allowed.

import { type Signal, useComputed, useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { isKind, type Kind, kindByWord, listPath } from "../api/kinds";
import { M } from "../base/morestrings";
import { visible } from "../base/text";
import type { Tone } from "../base/tones";
import { measure, PodUses } from "../model/meter";
import { selectorText } from "../model/selector";
import {
  allocated,
  amount,
  containerUses,
  type Figures,
  type Pair,
  pairOf,
  percent,
  toneOfLimit,
  toneOfNode,
  toneOfRequest,
} from "../model/usage";
import { hasPods, measured } from "../model/useusage";

type Obj = Record<string, any>;

export function InUse({ kind, object }: { kind: Kind; object: Obj }) {
  if (isKind(kind, "", "nodes")) return <Allocated node={object} />;
  if (!hasPods(kind) || !object.spec) return null;
  return <Containers kind={kind} object={object} spec={isKind(kind, "", "pods") ? object.spec : (object.spec.template?.spec ?? {})} />;
}

/** useFigures measures while it is shown; null where nothing is measured. */
function useFigures(resource: "pods" | "nodes", ns: string, more: Record<string, string>): Signal<Figures | null> {
  const figures = useSignal<Figures | null>(null);
  useEffect(() => (measured(resource) ? measure(resource, ns, (f) => (figures.value = f), more) : undefined), []);
  return figures;
}

interface Cell {
  text: string;
  tone?: Tone;
}

function Table({
  title,
  note,
  columns,
  rows,
}: {
  title: string;
  note?: string;
  columns: string[];
  rows: { key: string; cells: Cell[] }[];
}) {
  return (
    <section class="related">
      <h2>{title}</h2>
      {note && <p class="faint">{note}</p>}
      <table class="plain in-use">
        <thead>
          <tr>
            {columns.map((c) => (
              <th key={c} scope="col">
                {c}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((r) => (
            <tr key={r.key}>
              {r.cells.map((c, i) => (
                <td key={i} class={c.tone} data-label={i && c.text ? columns[i] : undefined}>
                  {visible(c.text)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

const BOTH = [0, 1] as const;

/** of writes an amount with its share; nothing for none. */
function of(pair: Pair, i: 0 | 1, share: number | undefined): string {
  return pair[i] ? amount(pair, i) + (share === undefined ? "" : ` (${percent(share)})`) : "";
}

function Containers({ kind, object, spec }: { kind: Kind; object: Obj; spec: Obj }) {
  const { name, namespace } = object.metadata;
  const pod = isKind(kind, "", "pods");
  const figures = useFigures("pods", namespace, pod ? { name } : { labelSelector: selectorText(object.spec.selector) });
  const n = figures.value ? Object.keys(figures.value.use).length : 0;
  // Requests and limits are among a pod's containers, too: the table is for what is measured.
  if (n === 0) return null;
  return (
    <Table
      title={M.inUse.title}
      note={pod ? undefined : M.inUse.pods(n)}
      columns={M.inUse.columns}
      rows={containerUses(spec, figures.value).map((c) => ({
        key: c.name,
        cells: [
          { text: c.name },
          ...BOTH.flatMap((i): Cell[] => [
            { text: c.use ? amount(c.use.used, i) : "" },
            { text: of(c.requests, i, c.use?.ofRequest[i]), tone: toneOfRequest(c.use?.ofRequest[i]) },
            { text: of(c.limits, i, c.use?.ofLimit[i]), tone: toneOfLimit(c.use?.ofLimit[i]) },
          ]),
        ],
      }))}
    />
  );
}

function Allocated({ node }: { node: Obj }) {
  const name: string = node.metadata.name;
  const pods = useMemo(() => {
    const fields = `spec.nodeName=${name},status.phase!=Succeeded,status.phase!=Failed`;
    return new PodUses(listPath(kindByWord("pods")!, ""), { fieldSelector: fields });
  }, []);
  useEffect(() => () => pods.close(), []);
  const figures = useFigures("nodes", "", {});
  const sums = useComputed(() => {
    pods.version.value;
    return pods.synced.value ? allocated(pods.rows.values()) : null;
  });
  const a = sums.value;
  const has = node.status?.allocatable ?? node.status?.capacity;
  if (!a || !has) return null;
  const used = figures.value?.use[name];
  const total: Pair = pairOf(has);
  const share = (pair: Pair, i: 0 | 1) => (total[i] ? pair[i] / total[i] : undefined);
  const most = Number(has.pods) || 0;
  return (
    <Table
      title={M.inUse.node}
      note={M.inUse.over}
      columns={M.inUse.nodeColumns}
      rows={[
        ...BOTH.map((i) => ({
          key: String(i),
          cells: [
            { text: M.inUse.resources[i] },
            { text: amount(total, i) },
            { text: of(a.requests, i, share(a.requests, i)), tone: toneOfNode(share(a.requests, i)) },
            { text: of(a.limits, i, share(a.limits, i)) },
            used ? { text: of(used, i, share(used, i)), tone: toneOfNode(share(used, i)) } : { text: "" },
          ],
        })),
        {
          key: "pods",
          cells: [
            { text: M.inUse.resources[2] },
            { text: String(most) },
            { text: `${a.pods} (${percent(most ? a.pods / most : undefined)})`, tone: toneOfNode(most ? a.pods / most : undefined) },
            { text: "" },
            { text: "" },
          ],
        },
      ]}
    />
  );
}
