import { MegaphoneError, connectionFailed, protocolError } from "./errors.js";
import { Backoff, now, sleep } from "./time.js";

export interface Options {
  /** Go with every call; a function is asked for them before each. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** Stands in for the global `fetch`. */
  fetch?: typeof fetch;
  /** After 2.5 times as long without a byte, a read connects again. 10,000 by default. */
  heartbeatMs?: number;
  /** How long a call may take with all its tries: 30,000 by default, 55,000 at most. */
  timeoutMs?: number;
}

export interface CallOptions {
  timeoutMs?: number;
  signal?: AbortSignal;
}

interface Call {
  body?: unknown;
  key?: string | undefined;
  agent?: string;
  signal: AbortSignal;
}

export const agentOf = (address: string) => address.split(".", 1)[0]!;

/** The calls of one broker. */
export class Http {
  readonly #base: string;
  readonly #authorization: Record<string, string> = {};

  constructor(url: string, readonly options: Options) {
    const parsed = new URL(url, globalThis.location?.href);
    if (parsed.username) {
      const pair = decodeURIComponent(parsed.username) + ":" + decodeURIComponent(parsed.password);
      this.#authorization = { Authorization: "Basic " + btoa(pair) };
    }
    this.#base = parsed.origin + parsed.pathname.replace(/\/+$/, "");
  }

  /** Return an answer whose body is still to come. Throws the error of the broker. */
  async open(method: string, path: string, { body, key, agent, signal }: Call): Promise<Response> {
    const { headers, fetch: given } = this.options;
    const all = new Headers(typeof headers === "function" ? await headers() : headers);
    const own: Record<string, string> = { Accept: "application/x-ndjson", ...this.#authorization };
    if (body !== undefined) own["Content-Type"] = "application/json";
    if (key) own["Idempotency-Key"] = key;
    // A page of another origin may not send this header, which only proxies look at.
    if (agent && this.#base.startsWith(globalThis.location?.origin ?? "")) own["Megaphone-Agent"] = agent;
    for (const name in own) if (!all.has(name)) all.set(name, own[name]!);
    const init: RequestInit = { method, headers: all, signal, cache: "no-store", redirect: "manual" };
    if (body !== undefined) init.body = JSON.stringify(body);
    let response: Response;
    try {
      response = await (given ?? fetch)(this.#base + path, init);
    } catch (error) {
      const { code } = (error as { cause?: { code?: string } }).cause ?? {};
      throw connectionFailed("there is no connection", !/^(ECONNREFUSED|ENOTFOUND|EAI_AGAIN)$/.test(code ?? ""));
    }
    if (response.status < 200 || response.status > 299) throw await refused(response);
    return response;
  }

  /** Call until an answer comes, the call fails for good, or there is no time left. */
  async call<T>(
    path: string,
    body: unknown,
    { timeoutMs = this.options.timeoutMs ?? 30_000, signal }: CallOptions = {},
    { key, agent = "", isWrite = false }: { key?: string; agent?: string; isWrite?: boolean } = {},
    check?: (answer: T) => MegaphoneError | undefined,
  ): Promise<T> {
    const until = now() + timeoutMs;
    const backoff = new Backoff();
    let isUnknown = false;
    for (;;) {
      const begun = now();
      const abort = new AbortController();
      const stop = () => abort.abort();
      const timer = setTimeout(stop, until - begun);
      signal?.addEventListener("abort", stop);
      try {
        signal?.throwIfAborted();
        const response = await this.open("POST", path, { body, key, agent, signal: abort.signal });
        const text = await response.text().catch(() => {
          throw connectionFailed("the connection broke");
        });
        const answer = parsed(text) as T;
        const failure = check?.(answer);
        if (failure) throw failure;
        return answer;
      } catch (error) {
        signal?.throwIfAborted();
        if (!(error instanceof MegaphoneError)) throw error;
        isUnknown ||= isWrite && error.mayBeDone;
        const waitMs = backoff.next(error.retryAfterS);
        // A try that is likely to get no answer in time would only make the outcome unknown.
        if (!error.mayHeal || 2 * now() - begun + waitMs >= until) {
          if (isUnknown) {
            const unknown = new MegaphoneError("OUTCOME_UNKNOWN", "it may have been done: " + error.message);
            unknown.cause = error;
            throw unknown;
          }
          throw error;
        }
        await sleep(waitMs, signal);
      } finally {
        clearTimeout(timer);
        signal?.removeEventListener("abort", stop);
      }
    }
  }
}

function parsed(text: string): unknown {
  try {
    const answer = JSON.parse(text);
    if (typeof answer === "object" && answer) return answer;
  } catch {}
  throw protocolError(text.length);
}

async function refused(response: Response): Promise<MegaphoneError> {
  const { status } = response;
  const wait = Number(response.headers.get("Retry-After") || NaN);
  let code: unknown;
  let message: unknown;
  try {
    ({ code, message } = await response.json());
  } catch {}
  const isKnown = typeof code === "string";
  return new MegaphoneError(
    isKnown ? (code as string) : "HTTP_" + status,
    isKnown ? String(message) : `HTTP answer ${status} without an error of the broker`,
    {
      isUnavailable: status >= 500 || status === 408 || status === 429,
      retryAfterS: wait >= 0 ? wait : undefined,
    },
  );
}
