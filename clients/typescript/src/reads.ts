import { connect } from "./connection.js";
import type { Http } from "./http.js";
import type { Many } from "./many.js";
import type { Read } from "./read.js";

export const randomId = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** Call a function when the page, or the network, comes back. Returns: a function that ends this. */
export function onWake(wake: () => void): () => void {
  const abort = new AbortController();
  for (const type of ["online", "pageshow", "visibilitychange"]) globalThis.addEventListener?.(type, wake, { signal: abort.signal });
  return () => abort.abort();
}

/** Read one channel until the answer ends in order. `begun` is called when it begins. Throws a MegaphoneError. */
export function readOne(http: Http, abort: AbortController, read: Read, name: string, begun: () => unknown): Promise<void> {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(read.ask(name, http.polls))) for (const one of [value ?? []].flat()) query.append(key, one);
  return connect(http, abort, {
    path: `/read/${encodeURIComponent(read.readAddress)}?${query}`,
    beatMs: read.beatMs,
    opened(headers) {
      read.opened(headers.get("Megaphone-Recovered") === "false", headers.get("Megaphone-Position"));
      begun();
    },
    take: (line) => read.take(line),
  });
}

/** Where the events of a read come from. */
export interface Source {
  /** Read the channel until it ends for good, or `end` is called. */
  begin(): void;
  end(): void;
}

/** The reads of a client. One has a connection of its own; as soon as there are more, they share some. */
export type Reads = (read: Read) => Source;

export function newReads(http: Http): Reads {
  const name = randomId();
  /** What ends each read that has connections of its own. */
  const ends = new Map<Read, () => void>();
  let many: Many | undefined;
  let loading: Promise<unknown> | undefined;

  const share = (module: typeof import("./many.js")) => {
    many = new module.Many(http, name);
    // A read that is cut before it has begun could not take over, and would be refused.
    for (const read of ends.keys()) if (read.hasBegun) handOver(read);
  };

  /** Let a read share a connection, if the code for that is there. */
  const handOver = (read: Read) => {
    if (!many) return false;
    ends.get(read)!();
    many.add(read);
    return true;
  };

  const readAlone = (read: Read) => {
    let timer: ReturnType<typeof setTimeout>;
    let abort: AbortController | undefined;
    const stop = () => {
      clearTimeout(timer);
      abort?.abort();
      abort = undefined;
    };
    const run = async () => {
      stop();
      const mine = (abort = new AbortController());
      await loading;
      if (abort !== mine || handOver(read)) return;
      const waitMs = await readOne(http, mine, read, name, () => abort === mine && handOver(read)).then(
        () => read.ended(),
        (error) => (abort === mine ? read.failed(error) : undefined),
      );
      if (abort === mine && waitMs !== undefined) timer = setTimeout(run, waitMs);
    };
    const unlisten = onWake(() => {
      if (abort?.signal.aborted || read.isSilent()) void run(); // it waits, or its connection may be dead
    });
    timer = setTimeout(run); // with all channels that the page opens at the same time
    ends.set(read, () => {
      unlisten();
      stop();
      ends.delete(read);
    });
  };

  return (read) => ({
    begin() {
      if (many) return many.add(read);
      readAlone(read);
      if (ends.size > 1) loading ??= import("./many.js").then(share).catch(() => (loading = undefined)); // it cannot be loaded now
    },
    end() {
      many?.remove(read);
      ends.get(read)?.();
    },
  });
}
