// SPDX-License-Identifier: Apache-2.0

// Login by OIDC: the authorization code flow with PKCE. The page sends its user to the provider and comes back with a
// code, which the console's server exchanges. What proves that a login was begun in this tab (state, nonce, verifier)
// and the refresh token are in sessionStorage only. Nothing sends the user to the provider but a button.

import { S } from "../base/strings";

const BEGUN = "coracle.oidc";
const RENEWAL = "coracle.renewal";

/**
 * RENEW_BEFORE is how long before its end a token is renewed: browsers let a hidden tab look once a minute. CHECK_EVERY
 * finds out after sleep that this is due.
 */
const RENEW_BEFORE = 90_000;
const CHECK_EVERY = 15_000;

interface Begun {
  state: string;
  nonce: string;
  verifier: string;
  hash: string;
}

/**
 * Renewal is what renews a token; refresh is empty where the provider gave nothing for that. Times are by this browser's
 * clock, which may be wrong.
 */
interface Renewal {
  refresh: string;
  subject: string;
  /** ends is when the token ends; life is for how long it was good when it came. Both in milliseconds. */
  ends: number;
  life: number;
}

interface Answer {
  token?: string;
  refresh?: string;
  subject?: string;
  lifetime?: number;
  message?: string;
}

/** Outcome of a login or renewal. final: it would be refused again; other: it was another user's. */
export type Outcome = { token: string } | { refused: string; final?: boolean; other?: boolean };

function random(): string {
  return base64url(crypto.getRandomValues(new Uint8Array(32)));
}

function base64url(bytes: Uint8Array): string {
  let text = "";
  for (const b of bytes) text += String.fromCharCode(b);
  return btoa(text).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** home is the page's own address, to which the provider sends the user back. */
function home(): string {
  return location.origin + location.pathname;
}

async function provider(): Promise<{ clientID: string; authorization: string; endSession?: string; scope: string }> {
  const answer = await fetch("./oidc/provider");
  const body = (await answer.json().catch(() => ({}))) as Record<string, string>;
  if (!answer.ok) throw new Error(body.message || S.login.failed(answer.status));
  return body as { clientID: string; authorization: string; scope: string };
}

/** begin sends the user to the provider. It returns only when that fails, with why. */
export async function begin(): Promise<string> {
  if (!crypto.subtle) return S.oidc.insecure;
  try {
    const p = await provider();
    const begun: Begun = { state: random(), nonce: random(), verifier: random(), hash: location.hash };
    const challenge = base64url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(begun.verifier))));
    sessionStorage.setItem(BEGUN, JSON.stringify(begun));
    const url = new URL(p.authorization);
    const query = {
      response_type: "code",
      client_id: p.clientID,
      scope: p.scope,
      redirect_uri: home(),
      state: begun.state,
      nonce: begun.nonce,
      code_challenge: challenge,
      code_challenge_method: "S256",
    };
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    location.assign(url);
    return "";
  } catch (err) {
    return err instanceof Error ? err.message : S.login.unreachable;
  }
}

/** comeBack takes the provider's answer out of the address; null when there is none. It works once. */
export async function comeBack(): Promise<Outcome | null> {
  const query = new URLSearchParams(location.search);
  if (!query.has("state") || !(query.has("code") || query.has("error"))) return null;
  const text = sessionStorage.getItem(BEGUN);
  const begun = text ? (JSON.parse(text) as Begun) : null;
  sessionStorage.removeItem(BEGUN);
  history.replaceState(null, "", location.pathname + (begun?.hash || "#/"));
  // Another site may send a user here with a code of somebody else's.
  if (!begun || query.get("state") !== begun.state) return { refused: S.oidc.foreign };
  const error = query.get("error");
  if (error) return { refused: S.oidc.denied([error, query.get("error_description") ?? ""].join(" ").trim().slice(0, 300)) };
  return ask("./oidc/token", { code: query.get("code"), verifier: begun.verifier, nonce: begun.nonce, redirect: home() });
}

async function ask(path: string, body: object): Promise<Outcome> {
  let answer: Response;
  try {
    answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    return { refused: S.login.unreachable };
  }
  const got = (await answer.json().catch(() => ({}))) as Answer;
  if (!answer.ok || !got.token) {
    const { status } = answer;
    return { refused: got.message || S.login.failed(status), final: status >= 400 && status < 500, other: status === 409 };
  }
  const life = (got.lifetime ?? 0) * 1000;
  const r: Renewal = { refresh: got.refresh ?? "", subject: got.subject ?? "", ends: Date.now() + life, life };
  sessionStorage.setItem(RENEWAL, JSON.stringify(r));
  return { token: got.token };
}

function renewal(): Renewal | null {
  const text = sessionStorage.getItem(RENEWAL);
  return text ? (JSON.parse(text) as Renewal) : null;
}

let renewing: Promise<Outcome | null> | null = null;

/** renew gets a new token of the same user; null when there is nothing to renew by. */
export function renew(): Promise<Outcome | null> {
  renewing ??= renewNow().finally(() => (renewing = null));
  return renewing;
}

async function renewNow(): Promise<Outcome | null> {
  const r = renewal();
  if (!r?.refresh) return null;
  const got = await ask("./oidc/refresh", { refresh: r.refresh, subject: r.subject });
  if ("refused" in got && got.final) sessionStorage.setItem(RENEWAL, JSON.stringify({ ...r, refresh: "" }));
  return got;
}

/** byProvider says whether the tab's user logged in at the provider. */
export function byProvider(): boolean {
  return renewal() !== null;
}

/** forget forgets how the token is renewed. */
export function forget(): void {
  sessionStorage.removeItem(BEGUN);
  sessionStorage.removeItem(RENEWAL);
}

/** leave ends the user's session at the provider, when it has an address for that. */
export async function leave(): Promise<void> {
  try {
    const p = await provider();
    if (!p.endSession) return;
    const url = new URL(p.endSession);
    url.searchParams.set("client_id", p.clientID);
    url.searchParams.set("post_logout_redirect_uri", home());
    location.assign(url);
  } catch {
    // The tab has forgotten its tokens; there is nothing else to undo.
  }
}

/** due says whether the token is to be renewed now: shortly before its end, and not in the first half of its life. */
function due(): boolean {
  const r = renewal();
  if (!r?.refresh) return false;
  const left = r.ends - Date.now();
  return left < Math.min(RENEW_BEFORE, r.life / 2) || left > r.life; // the latter: the clock was set back
}

/** keepRenewing calls f whenever the token is to be renewed: also after sleep, and when a hidden tab is shown. */
export function keepRenewing(f: () => void): () => void {
  const look = () => {
    if (due()) f();
  };
  const timer = setInterval(look, CHECK_EVERY);
  document.addEventListener("visibilitychange", look);
  return () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", look);
  };
}
