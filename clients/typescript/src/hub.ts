import { MegaphoneError, connectionFailed, protocolError } from "./errors.js";
import { agentOf, type Http } from "./http.js";
import { Splitter } from "./lines.js";
import type { Line, Read } from "./read.js";
import { now } from "./time.js";

const MOST_CHANNELS = 100;
const TOGETHER_MS = 20;
const SILENT_HEARTBEATS = 2.5;
const NO_ROUTE = /^(NOT_FOUND|HTTP_404|HTTP_405)$/;

interface Connection {
  key: string;
  reads: Map<number, Read>;
  /** Whether one of the reads has not begun. */
  isFresh: boolean;
  lastByte: number;
  /** End the connection. Its reads are due at once, unless it ends because of silence. */
  cut(isSilent?: boolean): void;
}

export const randomId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => (byte | 256).toString(16).slice(1)).join("");

/**
 * The connections of a client for reads. Channels that are asked in the same way share one, up to
 * 100 of them. A channel that is new is first read apart from those that are read already, because
 * only these may take over; as soon as it has begun, both connections become one.
 */
export class Hub {
  readonly #http: Http;
  readonly #name = randomId();
  readonly #due = new Map<Read, number>();
  readonly #open = new Set<Connection>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isApart = false;
  readonly #wake = (event: Event) => {
    if (event.type !== "visibilitychange" || document.visibilityState === "visible") this.wake();
  };

  constructor(http: Http) {
    this.#http = http;
  }

  /** Read a channel until it ends for good, or is removed. */
  add(read: Read): void {
    if (!this.#due.size && !this.#open.size) this.#listen("add");
    this.#plan(read, 0);
  }

  remove(read: Read): void {
    this.#due.delete(read);
    for (const connection of this.#open)
      for (const [index, one] of connection.reads)
        if (one === read) {
          connection.reads.delete(index);
          connection.cut();
        }
    this.#rest();
  }

  /** Try again at once, after a sleep: a connection that was silent for a heartbeat may be dead. */
  wake(): void {
    for (const connection of this.#open)
      for (const [, read] of connection.reads)
        if (now() - connection.lastByte > read.heartbeatMs) {
          connection.cut();
          break;
        }
    for (const read of this.#due.keys()) this.#plan(read, 0);
  }

  #listen(how: "add" | "remove"): void {
    const listen = globalThis[`${how}EventListener`];
    for (const type of ["online", "pageshow"]) listen?.(type, this.#wake);
    globalThis.document?.[`${how}EventListener`]("visibilitychange", this.#wake as EventListener);
  }

  #rest(): void {
    if (!this.#due.size && !this.#open.size) this.#listen("remove");
  }

  #plan(read: Read, waitMs: number): void {
    this.#due.set(read, now() + waitMs);
    this.#schedule();
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#due.size) this.#timer = setTimeout(() => this.#start(), Math.max(0, Math.min(...this.#due.values()) - now()));
  }

  #keyOf(read: Read): string {
    return [agentOf(read.consumer), read.acknowledges, read.heartbeatMs, read.reader].join();
  }

  #start(): void {
    const until = now() + TOGETHER_MS;
    const groups = new Map<string, Read[][]>();
    for (const [read, at] of this.#due) {
      const key = this.#keyOf(read);
      const isWaited = [...this.#open].some((one) => one.key === key && one.isFresh);
      if (at > until || (isWaited && !read.hasBegun && !this.#isApart)) continue;
      this.#due.delete(read);
      const name = key + read.hasBegun;
      const some = groups.get(name) ?? [];
      groups.set(name, some);
      const room = some.find(
        (one) => one.length < (this.#isApart ? 1 : MOST_CHANNELS) && one.every(({ consumer }) => consumer !== read.consumer),
      );
      if (room) room.push(read);
      else some.push([read]);
    }
    for (const some of groups.values()) for (const group of some) void this.#connect(group);
    const later = [...this.#due.values()].filter((at) => at > until);
    clearTimeout(this.#timer);
    if (later.length) this.#timer = setTimeout(() => this.#start(), Math.min(...later) - now());
  }

  /** Make one connection of those that are asked in the same way, if there are several. */
  #merge(key: string): void {
    const same = [...this.#open].filter((one) => one.key === key && !one.isFresh);
    const consumers = same.flatMap((one) => [...one.reads.values()].map((read) => read.consumer));
    if (same.length > 1 && consumers.length <= MOST_CHANNELS && new Set(consumers).size === consumers.length && !this.#isApart)
      for (const one of same) one.cut();
  }

  async #connect(group: Read[]): Promise<void> {
    const abort = new AbortController();
    const [first] = group as [Read];
    let isCut = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const connection: Connection = {
      key: this.#keyOf(first),
      reads: new Map(group.entries()),
      isFresh: !first.hasBegun,
      lastByte: now(),
      cut(isSilent = false) {
        isCut ||= !isSilent;
        for (const read of group) read.cut();
        abort.abort();
      },
    };
    const beat = () => {
      connection.lastByte = now();
      clearTimeout(timer);
      timer = setTimeout(() => connection.cut(true), SILENT_HEARTBEATS * first.heartbeatMs);
    };
    const { reads } = connection;
    this.#open.add(connection);
    let error: MegaphoneError | undefined;
    try {
      beat();
      const response = await this.#ask(group, abort.signal);
      if (response.body) await this.#take(connection, group.length > 1, response, beat);
    } catch (failure) {
      error = failure instanceof MegaphoneError ? failure : connectionFailed("the connection broke");
    }
    clearTimeout(timer);
    abort.abort();
    this.#open.delete(connection);
    if (isCut) error = undefined;
    else if (error && group.length > 1 && NO_ROUTE.test(error.code)) {
      this.#isApart = true; // the broker is older than reads of many channels
      error = undefined;
      isCut = true;
    }
    const waits = [...reads.values()].map((read) => [read, isCut ? 0 : error ? read.failed(error) : read.ended()] as const);
    // All are read again at the same time, so that they share a connection again.
    const most = Math.max(0, ...waits.map(([, waitMs]) => waitMs ?? 0));
    for (const [read, waitMs] of waits) if (waitMs !== undefined) this.#plan(read, most);
    this.#schedule();
    this.#rest();
  }

  #ask(group: Read[], signal: AbortSignal): Promise<Response> {
    const [first] = group as [Read];
    const returns = first.hasBegun;
    const asked = group.map((read) => [read.consumer, read.ask()] as const);
    const options = {
      heartbeat_ms: Math.max(1, Math.round(first.heartbeatMs)),
      ...(first.acknowledges && { ack: "explicit" }),
      reader: first.reader ?? this.#name,
      ...(returns && { takeover: true, returning: true }),
    };
    if (group.length > 1) {
      const channels = asked.map(([address, after]) => ({ address, after }));
      return this.#http.open("POST", "/read", { body: { channels, ...options }, agent: agentOf(first.consumer), signal });
    }
    const [[consumer, after]] = asked as [readonly [string, string | undefined]];
    const query = new URLSearchParams(Object.entries({ ...options, ...(after !== undefined && { after }) }).map(([name, value]) => [name, String(value)]));
    return this.#http.open("GET", `/read/${encodeURIComponent(consumer)}?${query}`, { signal });
  }

  async #take(connection: Connection, areMany: boolean, { headers, body }: Response, beat: () => void): Promise<void> {
    const { reads } = connection;
    const single = areMany ? undefined : reads.get(0);
    const begun = () => {
      if (connection.isFresh && [...reads.values()].every((read) => read.hasBegun)) {
        connection.isFresh = false;
        this.#merge(connection.key);
        this.#start();
      }
    };
    if (single) {
      const recovered = headers.get("Megaphone-Recovered");
      single.opened(recovered === null ? null : recovered === "true", headers.get("Megaphone-Position"));
      begun();
    }
    const splitter = new Splitter();
    const reader = body!.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      beat();
      for (const read of reads.values()) read.alive();
      const events = new Map<Read, Line[]>();
      const flush = () => {
        for (const [read, lines] of events) read.take(lines);
        events.clear();
      };
      try {
        for (const text of split(splitter, value)) {
          const line = lineOf(text);
          const read = areMany ? reads.get(line.channel!) : single;
          if (!read) continue;
          if (areMany && (line.begun || line.done)) {
            flush();
            if (line.begun) read.opened(line.recovered, line.position);
            else {
              reads.delete(line.channel!);
              this.#done(read, line);
            }
            begun();
          } else if (typeof line.eid === "string" && typeof line.sid === "string" && "body" in line) {
            const lines = events.get(read) ?? [];
            events.set(read, lines);
            lines.push(line);
          } else throw protocolError(text.length);
        }
      } finally {
        flush();
      }
    }
  }

  /** The read of one channel of many is done. */
  #done(read: Read, { code, message = "", retryAfter }: Line): void {
    const waitMs = code
      ? read.failed(new MegaphoneError(code, message, { isUnavailable: true, retryAfterS: retryAfter }))
      : read.ended();
    // A moment later, because other channels may be done then too.
    if (waitMs !== undefined) this.#plan(read, Math.max(waitMs, TOGETHER_MS));
  }
}

/** Return the lines that have something, which heartbeats have not. */
function split(splitter: Splitter, piece: Uint8Array): string[] {
  try {
    return splitter.push(piece).filter((line) => line.trim());
  } catch {
    throw protocolError(piece.length);
  }
}

function lineOf(text: string): Line {
  try {
    const line = JSON.parse(text);
    if (typeof line === "object" && line) return line;
  } catch {}
  throw protocolError(text.length);
}
