// SPDX-License-Identifier: Apache-2.0

// Ports of pods and Services on 127.0.0.1: the dialog that opens one, and the list of those that are open.

import { useEffect, useState } from "preact/hooks";
import { announce } from "../base/announce";
import { api, reasonOf, send } from "../api/client";
import { Command, show } from "../widgets/dialog";
import { addressOf, type Forward, forwardName, forwards, readForwards } from "../model/forwards";
import { isKind, objectPath } from "../api/kinds";
import { command } from "../model/kubectl";
import { session } from "../api/session";
import { S } from "../base/strings";
import { visible } from "../base/text";
import type { Target } from "../model/target";
import { copy } from "../base/clipboard";
import { NumberField } from "./fields";

interface Port {
  value: string;
  text: string;
}

/** portsOf are the ports of TCP that an object says it has. */
function portsOf(object: Record<string, any>): Port[] {
  const containers = [...(object.spec?.containers ?? []), ...(object.spec?.initContainers ?? [])] as Record<string, any>[];
  const all = (object.spec?.ports ?? containers.flatMap((c) => c.ports ?? [])) as Record<string, any>[];
  return all
    .filter((p) => !p.protocol || p.protocol === "TCP")
    .map((p) => {
      const value = String(p.port ?? p.containerPort);
      return { value, text: p.name ? `${value} (${p.name})` : value };
    });
}

/** forward asks for a port and opens it. */
export async function forward(t: Target): Promise<void> {
  const object = t.object ?? (await api<Record<string, any>>("GET", objectPath(t.kind, t.ns, t.name)));
  show({ title: S.forwards.openTitle(t.name), content: (close) => <Ask target={t} ports={portsOf(object)} close={close} /> });
}

function Ask({ target: t, ports, close }: { target: Target; ports: Port[]; close: () => void }) {
  const [port, setPort] = useState(ports[0]?.value ?? "");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const server = session.value?.mode !== "loopback";
  const resource = isKind(t.kind, "", "services") ? "service/" : "pod/";
  const same = port ? command({ verb: "port-forward", names: [resource + t.name, ":" + port], ns: t.ns }) : "";
  const open = async () => {
    setBusy(true);
    setError("");
    try {
      const f = await send<Forward>("POST", "/forward", { path: objectPath(t.kind, t.ns, t.name), port });
      announce(S.forwards.opened(addressOf(f)));
      close();
      showForwards();
    } catch (err) {
      setError(reasonOf(err));
      setBusy(false);
    }
  };
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (server) void copy(same).then(close);
        else if (!busy) void open();
      }}
    >
      <p>{server ? S.forwards.server : S.forwards.text}</p>
      <NumberField label={S.forwards.port} value={port} set={setPort} min={1} max={65535} required first list="forward-ports" />
      <datalist id="forward-ports">
        {ports.map((p) => (
          <option key={p.text} value={p.value}>
            {visible(p.text)}
          </option>
        ))}
      </datalist>
      <p class="faint">{S.forwards.portHint(ports.map((p) => visible(p.text)).join(", "))}</p>
      {error && (
        <p class="bad" role="alert">
          {visible(error)}
        </p>
      )}
      <Command text={same} />
      <div class="buttons">
        <button type="button" onClick={close}>
          {S.cancel}
        </button>
        <button type="submit" class="primary" disabled={busy}>
          {server ? S.copy : S.forwards.button}
        </button>
      </div>
    </form>
  );
}

/** Link opens a page of a pod: it gets no hold of this one. */
function Link({ address }: { address: string }) {
  return (
    <a href={address} target="_blank" rel="noopener noreferrer">
      {address}
    </a>
  );
}

/** showForwards shows what is open. */
export function showForwards(): void {
  show({ title: S.forwards.title, wide: true, content: (close) => <List close={close} /> });
}

function List({ close }: { close: () => void }) {
  useEffect(() => void readForwards(), []);
  const stop = async (f: Forward) => {
    try {
      await send("DELETE", "/forward/" + Number(f.id));
      if (!f.ended) announce(S.forwards.stopped(forwardName(f)));
    } catch (err) {
      announce(reasonOf(err), true);
    }
    await readForwards();
    document.querySelector<HTMLElement>("#forwards-close")?.focus();
  };
  return (
    <div>
      {forwards.value.length === 0 ? (
        <p>{session.value?.mode === "loopback" ? S.forwards.none : S.forwards.server}</p>
      ) : (
        <table class="plain">
          <thead>
            <tr>
              {S.forwards.columns.map((c) => (
                <th key={c} scope="col">
                  {c}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {forwards.value.map((f) => (
              <tr key={f.id}>
                <td>
                  {visible(forwardName(f))} <span class="faint">{S.forwards.leads(visible(f.pod), f.port)}</span>
                </td>
                <td>{f.ended ? <span class="bad">{visible(f.ended)}</span> : <Link address={addressOf(f)} />}</td>
                <td>{S.forwards.connections(f.open, f.opened)}</td>
                <td class={f.failed ? "bad" : ""}>{f.failed > 0 && S.forwards.newest(f.failed, visible(f.error))}</td>
                <td>
                  <button type="button" onClick={() => void stop(f)}>
                    {f.ended ? S.forwards.remove : S.forwards.stop}
                  </button>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <p class="faint">{S.forwards.note}</p>
      <div class="buttons">
        <button type="button" id="forwards-close" data-first onClick={close}>
          {S.close}
        </button>
      </div>
    </div>
  );
}
