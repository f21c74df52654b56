import { Channel, type ChannelOptions, type Made } from "./channel.js";
import { MegaphoneError, NAMES } from "./errors.js";
import { type CallOptions, Http, type Options, agentOf } from "./http.js";
import { Hub, randomId } from "./hub.js";

export { Channel, Events, type ChannelOptions, type Event, type Made, type State } from "./channel.js";
export { MegaphoneError } from "./errors.js";
export type { CallOptions, Options } from "./http.js";

/** A channel that was created. */
export interface Created {
  producer: string;
  consumer: string;
  protocols: string[];
}

/** An event of a batch that a channel did not take. */
export interface Failure {
  producer: string;
  index: number;
  /** The code of the error. */
  reason: string;
}

export interface WriteOptions extends CallOptions {
  /** An idempotency key, if the one that the client makes is not enough. */
  key?: string;
}

/** A client of one broker, or of many behind one address. */
export class Megaphone {
  readonly #http: Http;
  readonly #hub: Hub;

  /** `url` is `https://host/prefix`; in a page it may be a path, such as `/`. */
  constructor(url: string, options: Options = {}) {
    this.#http = new Http(url, options);
    this.#hub = new Hub(this.#http);
  }

  /**
   * Return a channel to read. A function in place of an address makes one: it is called at first use,
   * and again when the channel has gone, with what it returned before.
   */
  channel(address: string | ((former?: Made) => Promise<Made>), options: ChannelOptions = {}): Channel {
    return new Channel(this.#http, this.#hub, address, options);
  }

  /** Create a channel. */
  async create(
    { protocols = [], ttlS, capacity, label }: { protocols?: string[]; ttlS?: number; capacity?: number; label?: string } = {},
    options?: CallOptions,
  ): Promise<Created> {
    const body = { protocols, ttlSecs: ttlS, capacity, label };
    const made = await this.#http.call<any>("/create", body, options);
    return { producer: made.producerAddress, consumer: made.consumerAddress, protocols: made.protocols };
  }

  /**
   * Write one event. Returns its id, when the broker has it. Throws `WriteTimeout` if the channel
   * stayed full and did not take it, and `OutcomeUnknown` if it may have been taken.
   */
  async write(producer: string, stream: string, body: unknown, { key = randomId(), ...options }: WriteOptions = {}): Promise<string> {
    const path = `/write/${encodeURIComponent(producer)}/${encodeURIComponent(stream)}`;
    return (await this.#http.call<{ eid: string }>(path, body, options, { key, isWrite: true }, needs("eid"))).eid;
  }

  /** Write the same events to many channels. Returns which channel did not take which event. */
  async writeBatch(
    producers: Iterable<string>,
    messages: Iterable<readonly [stream: string, body: unknown]>,
    { key = randomId(), ...options }: WriteOptions = {},
  ): Promise<Failure[]> {
    const all = [...messages].map(([streamId, body]) => ({ streamId, body }));
    const groups = byAgent(producers);
    const results = await Promise.allSettled(groups.map((channels) => this.#writeGroup(channels, all, key, options)));
    const failed = results.filter((one) => one.status === "rejected");
    if (failed.length && failed.length === results.length) throw failed[0]!.reason;
    return results.flatMap((result, at) =>
      result.status === "fulfilled"
        ? result.value
        : groups[at]!.flatMap((producer) => all.map((_, index) => ({ producer, index, reason: result.reason.code as string }))),
    );
  }

  async #writeGroup(channels: string[], messages: unknown[], key: string, options: CallOptions): Promise<Failure[]> {
    let failures: any[] = [];
    let notYet: MegaphoneError | undefined;
    const call = { key, agent: agentOf(channels[0] ?? ""), isWrite: true };
    try {
      await this.#http.call<any>("/write-batch", { channels, messages }, options, call, (answer) => {
        const lacks = needs("failures")(answer);
        if (lacks) return lacks;
        failures = answer.failures;
        const code = failures.find(({ reason }) => NAMES[reason] === "Unavailable")?.reason;
        return (notYet = code && new MegaphoneError(code, "not all was taken: " + code));
      });
    } catch (error) {
      // The broker answered for each channel: it is not unknown what the others took.
      if (!notYet || (error !== notYet && (error as Error).cause !== notYet)) throw error;
    }
    return failures.map(({ channel, index, reason }) => ({ producer: channel, index, reason }));
  }

  /** Return for each address whether its channel exists. */
  async exists(addresses: Iterable<string>, options?: CallOptions): Promise<Record<string, boolean>> {
    const answers = await Promise.all(
      byAgent(addresses).map((channels) =>
        this.#http.call<any>("/channelsExists", { channels }, options, { agent: agentOf(channels[0]!) }, needs("channels")),
      ),
    );
    return Object.assign({}, ...answers.map(({ channels }) => channels));
  }

  /** Acknowledge an event and all before it in its channel. Returns how many of them were not acknowledged before. */
  async ack(consumer: string, eventId: string, options?: CallOptions): Promise<number> {
    const path = `/ack/${encodeURIComponent(consumer)}`;
    return (await this.#http.call<any>(path, { eid: eventId }, options, {}, needs("acknowledged"))).acknowledged;
  }
}

const needs = (member: string) => (answer: object) =>
  member in answer ? undefined : new MegaphoneError("PROTOCOL_ERROR", `an answer has no \`${member}\``);

function byAgent(addresses: Iterable<string>): string[][] {
  const groups = new Map<string, string[]>();
  for (const address of new Set(addresses)) {
    const agent = agentOf(address);
    groups.set(agent, [...(groups.get(agent) ?? []), address]);
  }
  return [...groups.values()];
}
