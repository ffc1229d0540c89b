// SPDX-License-Identifier: Apache-2.0

// The frame around each view: the line at the top, the view, the line of keys at the foot, messages and dialogs.

import { useEffect } from "preact/hooks";
import { announcements, dismiss } from "../base/announce";
import { reasonOf } from "../api/client";
import { chooseContext } from "../actions/contexts";
import { CommandBar, commandOpen } from "./commandbar";
import { connect, connected, disconnect, since } from "../api/connection";
import { closeDialog, DialogHost, show } from "../widgets/dialog";
import { dropAllDrafts } from "../model/drafts";
import { forgetForwards, forwards, readForwards } from "../model/forwards";
import { Help } from "./help";
import { Menu } from "./menu";
import { type Binding, layers, useKeys } from "../base/keys";
import { kindById, kinds, kindsError, label, loadKinds } from "../api/kinds";
import { ListView } from "../views/listview";
import { LoginPage } from "../views/login";
import { beginNamespace, chooseNamespace } from "../actions/namespaces";
import { ObjectView } from "../views/objectview";
import { forgetPermissions } from "../api/permissions";
import { disown, follow, forgetNamespace, go, initialNamespace, namespace, route, type View } from "../api/route";
import { lazy } from "../widgets/lazy";
import { logout, refused, session, stale, starting } from "../api/session";
import { S } from "../base/strings";
import { forgetLists } from "../model/liststate";
import { nextTheme, theme } from "../base/theme";
import { clock, visible } from "../base/text";
import { openForwards } from "../actions/dialogs";

const Overview = lazy(() => import("../views/overview").then((m) => m.Overview));
const Logs = lazy(() => import("../views/logview").then((m) => m.LogView));
const Shell = lazy(() => import("../views/shellview").then((m) => m.ShellView));
const Edit = lazy(() => import("../views/editview").then((m) => m.EditView));
const MapOf = lazy(() => import("../views/moreviews").then((m) => m.MapView));
const Helm = lazy(() => import("../views/moreviews").then((m) => m.HelmView));
const Search = lazy(() => import("../views/moreviews").then((m) => m.SearchView));
const Create = lazy(() => import("../views/createview").then((m) => m.CreateView));

export function App() {
  if (starting.value) return <p class="empty">{S.loading}</p>;
  if (!session.value) return <LoginPage />;
  return <Frame key={session.value.user + session.value.server} />;
}

function Frame() {
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const load = () =>
      beginNamespace()
        .then(initialNamespace)
        .then(loadKinds)
        .catch((err: unknown) => {
          kindsError.value = reasonOf(err);
          timer = setTimeout(load, 3_000);
        });
    void load();
    void readForwards();
    connect();
    return () => {
      clearTimeout(timer);
      disconnect();
      forgetPermissions();
      forgetForwards();
      kinds.value = [];
    };
  }, []);
  const s = session.value;
  const several = (s?.contexts ?? 0) > 1;
  useKeys([
    { key: ":", label: S.keys.command, run: () => (commandOpen.value = true), hint: true },
    { key: "?", label: S.keys.help, run: () => show({ title: S.help.title, wide: true, content: () => <Help /> }), hint: true },
    { key: "n", label: S.keys.namespace, run: () => void chooseNamespace() },
    { key: "Q", label: S.views.search, run: () => go({ view: "search" }), hint: true },
    { key: "0", label: S.keys.overview, run: () => follow("#/") },
    { key: "F", label: S.keys.forwards, run: openForwards },
    ...(several ? [{ key: "K", label: S.keys.contexts, run: () => void chooseContext() }] : []),
  ]);
  const title = useTitle();
  return (
    <div class="frame">
      <a
        class="skip"
        href="#main"
        onClick={(e) => {
          e.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        {S.skip}
      </a>
      <header>
        <a href="#/" class="brand">
          {S.title}
        </a>
        <button
          type="button"
          class="command-button"
          aria-label={`${title}. ${S.command.label}`}
          title={S.command.label}
          onClick={() => (commandOpen.value = true)}
        >
          <kbd>:</kbd> <span class="title-text">{title}</span>
        </button>
        {several && (
          <button type="button" class="context" onClick={() => void chooseContext()} title={S.contexts.title}>
            <span class="faint">{S.contexts.short}</span> {visible(s?.context)}
          </button>
        )}
        <button type="button" onClick={() => void chooseNamespace()} title={S.namespace.title}>
          <span class="faint">{S.namespace.short}</span> {visible(namespace.value || S.namespace.all)}
        </button>
        {forwards.value.length > 0 && (
          <button type="button" title={S.forwards.title} onClick={openForwards}>
            {S.forwards.count(forwards.value.filter((f) => !f.ended).length)}
          </button>
        )}
        <span class="spacer" />
        <ConnectionState />
        <span class="faint who" title={s?.server}>
          {visible(s?.user)}
          {s?.cluster ? " @ " + visible(s.cluster) : ""}
        </span>
        <button type="button" onClick={nextTheme} aria-label={S.theme.label(theme.value)} title={S.theme.label(theme.value)}>
          {S.theme.sign[theme.value]}
        </button>
        <button type="button" onClick={leave}>
          {S.logout}
        </button>
      </header>
      <Menu />
      <main id="main" tabIndex={-1}>
        {stale.value && (
          <p class="note" role="status">
            {S.stale}{" "}
            <button type="button" onClick={() => location.reload()}>
              {S.reload}
            </button>
          </p>
        )}
        {s?.readOnly && <p class="note">{S.readOnly}</p>}
        {kindsError.value && (
          <p class="note bad" role="alert">
            {visible(kindsError.value)}
          </p>
        )}
        <CurrentView />
      </main>
      <Hints />
      <CommandBar />
      <Announcements />
      <DialogHost />
    </div>
  );
}

/** leave logs out: nothing of the user's is left in the tab. */
function leave(): void {
  dropAllDrafts();
  forgetNamespace();
  logout();
}

function CurrentView() {
  switch (route.value.view) {
    case "list":
      return <ListView />;
    case "object":
      return <ObjectView />;
    case "logs":
      return <Logs />;
    case "shell":
      return <Shell />;
    case "edit":
      return <Edit />;
    case "create":
      return <Create />;
    case "map":
      return <MapOf />;
    case "helm":
      return <Helm />;
    case "search":
      return <Search />;
    default:
      return <Overview />;
  }
}

function useTitle(): string {
  const r = route.value;
  const k = kindById(r.kind);
  const titles: Partial<Record<View, string>> = {
    overview: S.overview.title,
    create: S.create.title,
    helm: S.views.helm,
    search: S.views.search,
  };
  const text = titles[r.view] ?? (k ? label(k) : r.kind.split(".")[0]);
  const context = (session.value?.contexts ?? 0) > 1 ? visible(session.value?.context) : "";
  useEffect(() => {
    document.title = [r.name, text, session.value?.cluster, context, S.title].filter(Boolean).join(" · ");
  }, [r, text]);
  return text;
}

function ConnectionState() {
  return (
    <span class={"connection " + connected.value} role="status">
      {connected.value === "starting" ? "" : S.connection[connected.value](clock(since.value))}
    </span>
  );
}

/** FIRST are the keys that lead to all others: what does not fit at the foot is never one of them. */
const FIRST = ["?", ":", "/", "n"];

function Hints() {
  const shown = new Map<string, Binding>();
  for (const key of FIRST) {
    const b = layers.value.flatMap((l) => l.bindings).findLast((x) => x.key === key);
    if (b && (b.hint || key === "n")) shown.set(key, b);
  }
  for (const layer of [...layers.value].reverse()) for (const b of layer.bindings) if (b.hint && !shown.has(b.key)) shown.set(b.key, b);
  return (
    <footer aria-label={S.help.title}>
      {[...shown.values()].map((b) => (
        <button key={b.key} type="button" tabIndex={-1} onClick={() => b.run()}>
          <kbd>{b.key.split(" ")[0]}</kbd> {b.label}
        </button>
      ))}
    </footer>
  );
}

function Announcements() {
  return (
    <div class="announcements">
      <div aria-live="polite" role="status">
        {announcements.value
          .filter((a) => !a.bad)
          .map((a) => (
            <Message key={a.id} id={a.id} text={a.text} bad={false} />
          ))}
      </div>
      <div aria-live="assertive" role="alert">
        {announcements.value
          .filter((a) => a.bad)
          .map((a) => (
            <Message key={a.id} id={a.id} text={a.text} bad />
          ))}
      </div>
    </div>
  );
}

function Message({ id, text, bad }: { id: number; text: string; bad: boolean }) {
  return (
    <p class={bad ? "message bad" : "message"}>
      {visible(text)}{" "}
      <button type="button" aria-label={S.dismiss} onClick={() => dismiss(id)}>
        ×
      </button>
    </p>
  );
}

// A token that is refused later ends the session: the streams end with it. Another user may log in next, who must not
// find the questions and messages of this one.
session.subscribe((s) => {
  if (s) return;
  if (refused.peek()) disconnect();
  closeDialog();
  disown();
  forgetLists();
  commandOpen.value = false;
  announcements.value = [];
});
