import { named } from "./codes.js";
import { MegaphoneError, connectionFailed, protocolError } from "./errors.js";
import type { Http } from "./http.js";
import { now, waitMs } from "./time.js";

/** How Node says that there was no connection to begin with. */
const NOT_SENT = /^E(CONNREFUSED|NOTFOUND|AI_AGAIN)$/;
const NOT_TAKEN = /^(MOVED|NO_AGENT|SHUTTING_DOWN|(KEYS|TARGET)_UNAVAILABLE)$/;

export interface CallOptions {
  /** How long the call may take with all its tries. */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** What a call is beside its path and body. */
export interface Call<T> {
  key?: string;
  /** By which a proxy finds the node, if the path names no address. */
  agent?: string;
  isWrite?: boolean;
  method?: string;
  /** Returns what is wrong with an answer. */
  check?: (answer: T) => MegaphoneError | undefined;
}

/** Whether a request that failed in this way may have had its effect. */
export const mayBeDone = ({ code, name, cause }: MegaphoneError) =>
  (code === "CONNECTION_FAILED" && !NOT_SENT.test((cause as any)?.cause?.code)) || (name === "Unavailable" && !NOT_TAKEN.test(code));

/** The outcome is unknown, because of an error. */
export const unknownAfter = (error: MegaphoneError) => {
  const unknown = new MegaphoneError("OUTCOME_UNKNOWN", "it may have been done: " + error.message);
  unknown.cause = error;
  return unknown;
};

/** Wait, or until the signal is given. */
export const sleep = (ms: number, signal?: AbortSignal) =>
  new Promise<void>((resolve) => {
    const stop = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      resolve();
    };
    const timer = setTimeout(stop, ms);
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
  });

/** Call once, with a body of JSON or none. Throws a MegaphoneError. */
export async function callOnce<T>(
  http: Http,
  path: string,
  json: string | undefined,
  timeoutMs: number,
  { key, agent, method, check }: Call<T>,
  signal?: AbortSignal,
): Promise<T> {
  const abort = new AbortController();
  const stop = () => abort.abort();
  const timer = setTimeout(stop, timeoutMs);
  signal?.addEventListener("abort", stop);
  try {
    signal?.throwIfAborted();
    const headers = {
      ...(json && { "content-type": "application/json" }),
      ...(key && { "idempotency-key": key }),
      ...(agent && { "megaphone-agent": agent }),
    };
    const response = await http.open(path, { method: method ?? "POST", headers, signal: abort.signal, ...(json && { body: json }) });
    const text = await response.text().catch((error) => {
      throw connectionFailed(error);
    });
    const answer = parsed(text, response.headers) as T;
    const failure = check?.(answer);
    if (failure) throw failure;
    return answer;
  } catch (error) {
    throw error instanceof MegaphoneError ? named(error) : error;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
}

/** Call until an answer comes, the call fails for good, or there is no time left. */
export async function call<T>(
  http: Http,
  path: string,
  body: unknown,
  { timeoutMs = http.options.timeoutMs ?? 30_000, signal }: CallOptions = {},
  what: Call<T> = {},
): Promise<T> {
  const json = JSON.stringify(body);
  const until = now() + timeoutMs;
  let isUnknown = false;
  for (let failures = 0; ; failures++) {
    const begun = now();
    try {
      return await callOnce(http, path, json, until - begun, what, signal);
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof MegaphoneError)) throw error;
      isUnknown ||= !!what.isWrite && mayBeDone(error);
      const pauseMs = waitMs(failures, error.retryAfterS * 1000);
      // A try that is likely to get no answer in time would only make the outcome unknown.
      if (!error.mayHeal || 2 * now() - begun + pauseMs >= until) throw isUnknown ? unknownAfter(error) : error;
      await sleep(pauseMs, signal);
    }
  }
}

function parsed(text: string, headers: Headers): unknown {
  try {
    const answer = JSON.parse(text);
    if (typeof answer === "object" && answer) return answer;
  } catch (error) {
    // Cut in its middle: not every runtime reports that.
    if (headers.get("content-type")?.includes("json")) throw connectionFailed(error);
  }
  throw protocolError(text.length);
}
