import { type Channel, type Event, Megaphone } from "./index.js";

/** An event by the names of the former client. */
export interface Chunk<T> {
  sid: string;
  eid: string;
  ts: string;
  body: T;
}

export interface Observer<T> {
  next?(chunk: Chunk<T>): unknown;
  error?(error: unknown): unknown;
  complete?(): unknown;
}

/** What rxjs takes for an Observable: `from(chunks)` makes it one of its own. */
export interface Chunks<T> extends AsyncIterable<Chunk<T>> {
  subscribe(observer: Observer<T> | ((chunk: Chunk<T>) => unknown)): { unsubscribe(): void };
}

/** The addresses of a channel, as the former client has them since its version 0.10. */
export interface ChannelAddress {
  producer: string;
  consumer: string;
}

/**
 * What a factory returns: which streams to read, and of which channel. Older versions of the former
 * client had only the consumer address, by one of two names. Without any, the streams are those of
 * the channel that is being read.
 */
export interface Use {
  channelAddress?: ChannelAddress | string;
  channelId?: string;
  streamIds: string[];
}

/** Gets the producer address of the channel that is being read, or that which a factory returned in its place. */
export type Factory = (address?: string) => Promise<Use>;

const chunkOf = <T>({ stream, id, time, body }: Event<T>): Chunk<T> => ({ sid: stream, eid: id, ts: time.toISOString(), body });

/**
 * `MegaphonePoller` of the former JavaScript client, by the rules of this one: an answer that comes
 * before somebody subscribes is kept, and a broken connection ends no stream. The channel is read
 * while somebody subscribes to one of its streams.
 */
export class MegaphonePoller {
  readonly #megaphone: Megaphone;
  #channel: Channel | undefined;
  #former: ChannelAddress | undefined;
  #subscribers = 0;
  #wasLeft = false;

  /** The client remembers the ids of 1,000 events or more, whatever the length of the buffer. */
  constructor(url: string, _bufferLength?: number) {
    this.#megaphone = new Megaphone(url);
  }

  /** `factory` gets the address of the channel that is being read. A stream ends when `finalizer` returns false. */
  async newStream<T>(factory: Factory, finalizer: (stream: string, chunk: Chunk<T>) => boolean): Promise<Chunks<T>> {
    const used = await factory(this.#wasLeft ? undefined : this.#former?.producer);
    const { channelAddress = used.channelId, streamIds } = used;
    const address = typeof channelAddress === "string" ? { producer: channelAddress, consumer: channelAddress } : channelAddress;
    this.#wasLeft = false;
    if (address && address.consumer !== this.#former?.consumer) {
      this.#former = address;
      this.#channel = this.#megaphone.channel(address.consumer);
    }
    if (!this.#channel) throw new TypeError("the factory has named no channel, and none is being read");
    const channel = this.#channel;
    const subscribe: Chunks<T>["subscribe"] = (given) => {
      const { next, error, complete } = typeof given === "function" ? ({ next: given } as Observer<T>) : given;
      const all = streamIds.map((stream) => channel.stream<T>(stream));
      this.#subscribers++;
      let open = all.length;
      let isOver = false;
      const end = (report?: () => unknown) => {
        if (isOver) return;
        isOver = true;
        for (const events of all) void events.return();
        if (!--this.#subscribers && channel === this.#channel) {
          this.#wasLeft = true; // the channel may be gone by the time of the next stream
          channel.pause();
        }
        report?.();
      };
      for (const events of all)
        void (async () => {
          for await (const event of events) {
            const chunk = chunkOf(event);
            next?.call(given, chunk);
            if (!finalizer(chunk.sid, chunk)) break;
          }
          if (!--open) end(() => complete?.call(given));
        })().catch((failure: unknown) => end(() => error?.call(given, failure)));
      return { unsubscribe: () => end() };
    };
    return { subscribe, [Symbol.asyncIterator]: () => iterate(subscribe) };
  }

  /** Streams that end when nobody subscribes any more. */
  newUnboundedStream<T>(factory: Factory): Promise<Chunks<T>> {
    return this.newStream<T>(factory, () => true);
  }

  /** Streams that end after one event each. */
  newDelayedResponse<T>(factory: Factory): Promise<Chunks<T>> {
    return this.newStream<T>(factory, () => false);
  }
}

async function* iterate<T>(subscribe: Chunks<T>["subscribe"]): AsyncGenerator<Chunk<T>, void> {
  const items: Chunk<T>[] = [];
  let end: { error?: unknown } | undefined;
  let wake = () => {};
  const subscription = subscribe({
    next: (chunk) => (items.push(chunk), wake()),
    error: (error) => ((end = { error }), wake()),
    complete: () => ((end = {}), wake()),
  });
  try {
    for (;;) {
      const chunk = items.shift();
      if (chunk) yield chunk;
      else if (end) {
        if (end.error) throw end.error;
        return;
      } else await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    subscription.unsubscribe();
  }
}
