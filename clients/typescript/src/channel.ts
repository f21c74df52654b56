import { MegaphoneError } from "./errors.js";
import type { Http } from "./http.js";
import { type Event, type Events, LEAST_ROOM, newInbox } from "./inbox.js";
import { Read, type Sink } from "./read.js";
import type { Reads, Source } from "./reads.js";
import { waitMs } from "./time.js";

export type State = "connecting" | "open" | "waiting" | "closed";

/** What a function in place of an address returns. */
export interface Made {
  consumer: string;
  producer?: string;
  streams?: string[];
}

/** The consumer address of a channel, or a function that makes one. */
export type Address = string | ((former?: Made) => Promise<Made>);

export interface ChannelOptions {
  /**
   * When an event counts as dealt with, so that the broker may drop it: `none` (default, for pages)
   * as soon as it was sent, and the last 100 are kept for a read that comes back; `auto` when the
   * app asks for the next one; `manual` when it calls `ack`.
   */
  ack?: "none" | "auto" | "manual";
  /** The cursor of an earlier read; "-" stands before the first event. */
  after?: string;
  /** The only streams that are wanted. The others count as dealt with. */
  streams?: string[];
  /** After so many events the channel is closed, and iterating ends. */
  limit?: number;
  /** Is called before the first event after a gap. Without it, iterating throws `EVENTS_LOST`. */
  onGap?: () => unknown;
  /** Overrides that of the client. */
  heartbeatMs?: number;
  /** Lets the tabs of a browser share one read: `tabs` of `./tabs`. Only with `ack: "none"`. */
  share?: Share;
}

/** Puts another source in place of the read's own. */
export type Share = (read: Read, own: Source) => Source;

/**
 * A channel to read. Reading begins at the first use, reconnects by itself, and ends only with
 * `close`, or with an error that no other try heals. Iterate over the channel, or over its streams.
 */
export interface Channel extends AsyncIterable<Event> {
  /** Is called with each new state. */
  onstate: ((state: State) => unknown) | undefined;
  readonly state: State;
  /** The id of the last event dealt with: keep it, and pass it as `after` to go on later. */
  readonly cursor: string | undefined;
  /** What the function in place of an address returned last. */
  readonly made: Made | undefined;
  [Symbol.asyncIterator](): Events;
  /** Return the events of one stream, beginning with those of the last 100 that nobody took. */
  stream<T = any>(stream: string): Events<T>;
  /** Return the body of the next event of a stream, which may have come already. */
  first<T = any>(stream: string, options?: { signal?: AbortSignal }): Promise<T>;
  /** Acknowledge an event and all before it. Returns when the broker knows. */
  ack(event: { id: string }): Promise<void>;
  /** Stop reading until somebody begins to iterate, which goes on where this ended. */
  pause(): void;
  /** Stop reading. The app has dealt with what it was given; the broker is told in a second at most. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export function newChannel(http: Http, reads: Reads, address: Address, options: ChannelOptions): Channel {
  const { ack = "none", after, heartbeatMs = http.options.heartbeatMs ?? 10_000, onGap, share, streams } = options;
  const acknowledges = ack !== "none";
  let left = options.limit;
  let state: State = "connecting";
  let made: Made | undefined;
  let read: Read | undefined;
  let source: Source | undefined;
  let isReading = false;
  let isMaking = false;
  let failures = 0;
  let timer: ReturnType<typeof setTimeout>;

  const become = (next: State) => {
    if (next === state || inbox.isOver) return;
    state = next;
    channel.onstate?.(state);
  };
  const begin = () => {
    if (isReading || inbox.isOver || inbox.isFull) return;
    isReading = true;
    void go();
  };
  const pause = () => {
    clearTimeout(timer);
    source?.end();
    isReading = false;
  };
  const end = (error?: unknown) => {
    pause();
    become("closed");
    inbox.end(error);
  };
  /** Go on a moment later, and later the more often that failed. */
  const goLater = () => {
    timer = setTimeout(go, failures++ && waitMs(failures));
  };
  /** Read, once there is an address. */
  const go = async () => {
    if (isMaking) return;
    try {
      if (!read) {
        isMaking = true;
        made = typeof address === "string" ? { consumer: address } : await address(made);
        const common = [made.consumer, heartbeatMs, sink, typeof address === "string" ? after : undefined] as const;
        read = acknowledges ? new (await import("./acks.js")).Acknowledging(http, streams, ...common) : new Read(...common);
        read.limit = left;
        source = reads(read);
        source = share?.(read, source) ?? source;
      }
      isMaking = false;
      if (isReading) source!.begin();
    } catch (error: any) {
      isMaking = false;
      // A TypeError is how `fetch` reports that there is no network.
      if (!(error instanceof TypeError || error.mayHeal)) return end(error);
      become("waiting");
      if (isReading) goLater();
    }
  };

  const sink: Sink = {
    become,
    gap: () => inbox.put(),
    take({ sid: stream, eid: id, ts, body, length }) {
      failures = 0;
      if (inbox.isOver || streams?.includes(stream) === false) return;
      if (left !== undefined) read!.limit = --left;
      const room = acknowledges ? 0 : Math.max(length, LEAST_ROOM); // the broker limits what is not acknowledged
      inbox.put({ id, stream, time: new Date(ts), body }, room);
      if (left! < 1) end();
    },
    ended(error) {
      if (error.code !== "NOT_FOUND" || typeof address === "string") return end(error);
      source!.end();
      read = undefined;
      inbox.pending.length = 0;
      become("connecting");
      goLater();
    },
  };
  const inbox = newInbox({
    begin,
    pause,
    dealt: (id) => read!.deal(id),
    deals: ack !== "manual",
    onGap,
  });

  const channel: Channel = {
    onstate: undefined,
    get state() {
      return state;
    },
    get cursor() {
      return (inbox.pending[0] ? read?.cursor : read?.received) ?? after;
    },
    get made() {
      return made;
    },
    pause,
    [Symbol.asyncIterator]: () => inbox.iterate(),
    stream: (stream) => inbox.iterate(stream),
    async first(stream, { signal } = {}) {
      signal?.throwIfAborted();
      const events = inbox.iterate<any>(stream);
      signal?.addEventListener("abort", events.return);
      try {
        for await (const { body } of events) {
          events.deal();
          return body;
        }
        signal?.throwIfAborted();
        throw new MegaphoneError("NOT_FOUND", "the channel is closed");
      } finally {
        signal?.removeEventListener("abort", events.return);
      }
    },
    ack: async ({ id }) => read?.ackUpTo?.(inbox, id),
    close() {
      inbox.dealAll();
      return channel[Symbol.asyncDispose]();
    },
    async [Symbol.asyncDispose]() {
      if (!inbox.isOver) end();
      await read?.close?.();
    },
  };
  return channel;
}
