// SPDX-License-Identifier: Apache-2.0

// A shell in a container of a pod, or the program that runs there (mode=attach in the address).

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { api, reasonOf } from "../api/client";
import { type Client, type Message, Stream } from "../api/connection";
import { attachPlace, chosenContainer, shellContainers } from "../model/containers";
import { Command } from "../widgets/dialog";
import { useKeys } from "../base/keys";
import { type Kind, kindById, kinds, objectPath } from "../api/kinds";
import { command } from "../model/kubectl";
import { back, claim, format, isOwn, route, setParams } from "../api/route";
import { lastWarning } from "../model/podlogs";
import { podReason } from "../model/podreason";
import { M } from "../base/morestrings";
import { S } from "../base/strings";
import { openScreen, type Screen } from "../widgets/terminal";
import { theme } from "../base/theme";
import { Empty } from "../widgets/table";
import { visible } from "../base/text";

/** KEEP_ALIVE is how often the size is sent again: JavaScript sends no pings, and proxies end silent connections. */
const KEEP_ALIVE = 30_000;

/** START_TRIES is for how many seconds a container is waited for: an image may be large. */
const START_TRIES = 300;

/** DEFAULT_COMMAND takes the better shell of those that most images have. */
const DEFAULT_COMMAND = ["/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash || exec sh"];

export function ShellView() {
  const r = route.value;
  const k = kindById(r.kind);
  if (!k) return kinds.value.length ? <Empty text={S.list.noKind(r.kind)} /> : <p class="empty">{S.loading}</p>;
  return <ShellOf key={[k.id, r.ns, r.name, r.params.container, r.params.mode].join("|")} kind={k} ns={r.ns} name={r.name} />;
}

function ShellOf({ kind, ns, name }: { kind: Kind; ns: string; name: string }) {
  const box = useRef<HTMLDivElement>(null);
  const screen = useRef<Screen | null>(null);
  const containers = useSignal<string[]>([]);
  const container = useSignal("");
  const ended = useSignal("");
  const waiting = useSignal("");
  const session = useSignal(0);
  // A shell is a process in the cluster: an address alone, which may be a link of another site, does not start one.
  const wanted = useSignal(isOwn());
  const path = objectPath(kind, ns, name);
  const attach = route.value.params.mode === "attach";
  const T = attach ? S.attach : S.shell;
  const hint = useSignal(T.hint);
  const same = useSignal("");

  useEffect(() => {
    let closed = false;
    let stream: Stream | null = null;
    let timer: ReturnType<typeof setInterval> | undefined;
    let watcher: ResizeObserver | null = null;
    let exit = 0;
    ended.value = "";
    const begin = async () => {
      let pod = await api<Record<string, any>>("GET", path);
      if (closed) return;
      const all = shellContainers(pod);
      containers.value = all;
      container.value = chosenContainer(pod, all, route.peek().params.container ?? "");
      let place = attachPlace(pod, container.value);
      same.value = attach ? attachCommand(ns, name, container.value, place.stdin, place.tty) : shellCommand(ns, name, container.value);
      if (!wanted.value) return;
      const phase = pod.status?.phase ?? "";
      // A sidecar runs before its pod does. A debug container of a pod that runs may have to load its image first.
      if (!place.running && (phase !== "Running" || !attach)) {
        const why = podReason(pod, container.value, await lastWarning(pod, container.value));
        throw new Error(phase === "Running" ? M.podReason.container(container.value, why) : M.podReason.phase(phase, why));
      }
      for (let tries = 0; attach && !place.running; tries++) {
        if (place.ended || tries >= START_TRIES) throw new Error(S.attach.notRunning(container.value, place.why));
        waiting.value = S.attach.waiting(container.value, place.why);
        await new Promise((done) => setTimeout(done, 1_000));
        if (closed) return;
        pod = await api<Record<string, any>>("GET", path);
        if (closed) return;
        place = attachPlace(pod, container.value);
      }
      waiting.value = "";
      const tty = !attach || place.tty;
      if (attach && !place.stdin) hint.value = S.attach.silent;
      const s = openScreen(box.current!);
      screen.current = s;
      s.fit();
      const client: Client = {
        watch: false,
        // A process cannot be joined again after the connection was lost.
        resume: () => null,
        message(m: Message) {
          if (m.type === "data") s.terminal.write(m.data);
          else if (m.type === "exit") exit = m.exit;
          else if (m.type === "state") s.terminal.write(`\r\n[${visible(m.message)}]\r\n`);
          else if (m.type === "end") {
            const done = attach ? S.attach.ended : S.shell.exited(exit);
            ended.value = m.reason === "ConnectionLost" ? T.lost : m.code ? m.message || S.shell.failed : done;
            clearInterval(timer);
            s.terminal.options.disableStdin = true;
            s.terminal.blur();
          }
        },
      };
      const query = { container: container.value };
      stream = attach
        ? new Stream({ op: "attach", path: path + "/attach", query: { ...query, stdin: String(place.stdin) }, tty }, client)
        : new Stream({ op: "exec", path: path + "/exec", query, command: DEFAULT_COMMAND, tty }, client);
      s.terminal.options.convertEol = !tty;
      if (attach && !place.stdin) s.terminal.options.disableStdin = true;
      const size = () => stream?.send({ op: "resize", cols: s.terminal.cols, rows: s.terminal.rows });
      s.terminal.onData((data) => {
        // Without a terminal nothing on the other side shows what is typed.
        if (!tty) s.terminal.write((data = data.replace(/\r/g, "\n")));
        stream?.send({ op: "stdin", data });
      });
      s.terminal.onResize(size);
      size();
      timer = setInterval(size, KEEP_ALIVE);
      watcher = new ResizeObserver(() => s.fit());
      watcher.observe(box.current!);
      // Escape belongs to the shell: this key, telnet's, leaves it without a mouse.
      s.terminal.attachCustomKeyEventHandler((e) => {
        if (e.type === "keydown" && e.ctrlKey && e.key === "]") {
          document.querySelector<HTMLElement>("#shell-back")?.focus();
          return false;
        }
        return true;
      });
      if (!attach || place.stdin) s.terminal.focus();
    };
    begin().catch((err: unknown) => {
      waiting.value = "";
      if (!closed) ended.value = reasonOf(err);
    });
    return () => {
      closed = true;
      clearInterval(timer);
      watcher?.disconnect();
      stream?.close();
      screen.current?.dispose();
      screen.current = null;
    };
  }, [session.value, wanted.value]);

  useLayoutEffect(() => {
    if (!wanted.value) document.querySelector<HTMLElement>("#shell-connect")?.focus();
  }, []);
  const connect = () => {
    claim();
    wanted.value = true;
  };

  useEffect(() => theme.subscribe(() => screen.current?.setTheme()), []);
  useKeys([
    { key: "Enter", label: S.shell.again, run: () => (wanted.value ? ended.value && session.value++ : connect()) },
    { key: "Escape", label: S.keys.back, run: back, hint: true },
  ]);

  return (
    <section class="view" aria-label={T.title(name)}>
      <div class="bar">
        <h1>
          <span class="faint">{T.in}</span>{" "}
          <a href={format({ view: "object", kind: kind.id, ns, name })}>
            <span class="faint">{visible(ns)}/</span>
            <span class="name">{visible(name)}</span>
          </a>
        </h1>
        <div class="tools">
          <label>
            <span class="hidden">{S.logs.container}</span>
            <select value={container.value} onChange={(e) => setParams({ container: e.currentTarget.value })}>
              {containers.value.map((c) => (
                <option key={c} value={c}>
                  {visible(c)}
                </option>
              ))}
            </select>
          </label>
          <button type="button" id="shell-back" onClick={back}>
            {S.shell.leave}
          </button>
        </div>
      </div>
      {!wanted.value && (
        <div class="pane">
          <p>{T.ask(visible(container.value), visible(name))}</p>
          <div class="buttons start">
            <button type="button" id="shell-connect" class="primary" onClick={connect}>
              {S.shell.connect}
            </button>
          </div>
        </div>
      )}
      {waiting.value && (
        <p class="note passing" role="status">
          {visible(waiting.value)}
        </p>
      )}
      {ended.value && (
        <p class="note" role="alert">
          {visible(ended.value)}{" "}
          {wanted.value && (
            <button type="button" onClick={() => session.value++}>
              {S.shell.again}
            </button>
          )}
        </p>
      )}
      <div key="screen" class="screen" ref={box} />
      <div class="foot">
        {container.value && <Command text={same.value} />}
        <span class="faint">{hint.value}</span>
      </div>
    </section>
  );
}

/** podWord names a pod. What follows "--" is the program: a name that looks like something else is written with its kind. */
function podWord(name: string): string {
  return /^-|\//.test(name) ? "pod/" + name : name;
}

function attachCommand(ns: string, name: string, container: string, stdin: boolean, tty: boolean): string {
  const verb = !stdin ? "attach" : tty ? "attach -it" : "attach -i";
  return command({ verb, names: [podWord(name)], options: ["--container=" + container], ns });
}

function shellCommand(ns: string, name: string, container: string): string {
  const pod = podWord(name);
  return command({ verb: "exec -it", names: [pod], options: ["--container=" + container], ns, program: ["sh"] });
}
