import { MegaphoneError, connectionFailed } from "./errors.js";

export interface Options {
  /** Go with every call; a function is asked for them before each. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** Stands in for the global `fetch`. */
  fetch?: typeof fetch;
  /** After 2.5 times as long without a byte, a read connects again. 10,000 by default. */
  heartbeatMs?: number;
  /** How long a call may take with all its tries: 30,000 by default, 55,000 at most. */
  timeoutMs?: number;
  /**
   * Read by long polls, where `fetch` gives no answer before its end. By default, if there are no
   * streams in answers, as in React Native.
   */
  polls?: boolean;
}

export interface Request {
  method?: string;
  /** The body. */
  json?: string | undefined;
  /** Go with it, unless the app has given others. */
  headers?: Record<string, string>;
  signal: AbortSignal;
}

/** The name of the agent that has the channel of an address. */
export const agentOf = (address: string) => address.split(".", 1)[0]!;

/** The way to one broker. */
export class Http {
  readonly #base: string;
  readonly #authorization: Record<string, string> = {};
  /** Whether reads are long polls. */
  polls: boolean;

  constructor(url: string, readonly options: Options) {
    const { username, password, origin, pathname } = new URL(url, globalThis.location?.href);
    if (username) this.#authorization = { Authorization: "Basic " + btoa(decodeURIComponent(username + ":" + password)) };
    this.polls = options.polls ?? !("body" in Response.prototype);
    this.#base = origin + pathname.replace(/\/+$/, "");
  }

  /** Return an answer whose body is still to come. Throws the error of the broker. */
  async open(path: string, { json, headers, ...init }: Request): Promise<Response> {
    const { headers: given, fetch: fetching = fetch } = this.options;
    const all = new Headers(typeof given === "function" ? await given() : given);
    const own = { ...this.#authorization, ...(json && { "Content-Type": "application/json" }), ...headers };
    for (const [name, value] of Object.entries(own)) if (!all.has(name)) all.set(name, value);
    let response: Response;
    try {
      response = await fetching(this.#base + path, {
        ...init,
        ...(json && { body: json }),
        headers: all,
        cache: "no-store",
        redirect: "manual",
      });
    } catch (error) {
      const { code } = (error as { cause?: { code?: string } }).cause ?? {};
      throw connectionFailed("there is no connection", !/^E(CONNREFUSED|NOTFOUND|AI_AGAIN)$/.test(code!));
    }
    if (response.ok) return response;
    const { status } = response;
    const { code, message } = await response.json().catch(() => 0);
    throw new MegaphoneError(
      code ?? "HTTP_" + status,
      message ?? "an error that is not the broker's",
      status > 499 || status === 408 || status === 429,
      +response.headers.get("Retry-After")! || undefined,
    );
  }
}
