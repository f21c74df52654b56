import { agentOf, byAgent } from "./agents.js";
import { type CallOptions, call } from "./calling.js";
import { errorOf } from "./codes.js";
import { MegaphoneError } from "./errors.js";
import type { Http } from "./http.js";
import type { Publisher, PublisherOptions } from "./publisher.js";
import { randomId } from "./reads.js";

/** A channel that was created. */
export interface Created {
  producer: string;
  consumer: string;
  protocols: string[];
}

/** What a creation may ask for. */
export interface CreateOptions {
  protocols?: string[];
  /** How long the channel lives unread, in seconds. */
  ttlS?: number;
  /** How many events that are not delivered it holds. */
  capacity?: number;
  /** By which operators know it. */
  label?: string;
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

export type Message = readonly [stream: string, body: unknown];

/** The calls of back ends. Code for them is loaded when one is made first. */
export class Calls {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /** Create a channel. */
  async create({ ttlS, protocols = [], ...more }: CreateOptions = {}, options?: CallOptions): Promise<Created> {
    const made = await call<any>(this.#http, "/create", { protocols, ttlSecs: ttlS, ...more }, options);
    return { producer: made.producerAddress, consumer: made.consumerAddress, protocols: made.protocols };
  }

  /**
   * Write one event. Returns its id, when the broker has it. Throws `WriteTimeout` if the channel
   * stayed full and did not take it, and `OutcomeUnknown` if it may have been taken. A path cannot
   * name the streams "." and "..": those are for `writeBatch` and a publisher.
   */
  async write(producer: string, stream: string, body: unknown, { key = randomId(), ...options }: WriteOptions = {}): Promise<string> {
    if (/^\.{0,2}$/.test(stream)) throw new MegaphoneError("BAD_REQUEST", `no path can name the stream "${stream}"`);
    const path = `/write/${encodeURIComponent(producer)}/${encodeURIComponent(stream)}`;
    return (await call<any>(this.#http, path, body, options, { key, isWrite: true, check: needs("eid") })).eid;
  }

  /** Write the same events to many channels. Returns which channel did not take which event. */
  async writeBatch(producers: Iterable<string>, messages: Iterable<Message>, { key = randomId(), ...options }: WriteOptions = {}): Promise<Failure[]> {
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

  /** Return what writes many events in batches, in the order of each channel. */
  async publisher(options?: PublisherOptions): Promise<Publisher> {
    const { Publisher } = await import("./publisher.js");
    return new Publisher(this.#http, options);
  }

  async #writeGroup(channels: string[], messages: unknown[], key: string, options: CallOptions): Promise<Failure[]> {
    let failures: any[] = [];
    let notYet: MegaphoneError | undefined;
    const check = (answer: any) => {
      const lacks = needs("failures")(answer);
      if (lacks) return lacks;
      failures = answer.failures;
      const error = failures.map(({ reason }) => errorOf(reason, "not all was taken: " + reason)).find(({ name }) => name === "Unavailable");
      return (notYet = error);
    };
    try {
      await call<any>(this.#http, "/write-batch", { channels, messages }, options, { key, agent: agentOf(channels[0] ?? ""), isWrite: true, check });
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
        call<any>(this.#http, "/channelsExists", { channels }, options, { agent: agentOf(channels[0]!), check: needs("channels") }),
      ),
    );
    return Object.assign({}, ...answers.map(({ channels }) => channels));
  }

  /** Acknowledge an event and all before it in its channel. Returns how many of them were not acknowledged before. */
  async ack(consumer: string, eventId: string, options?: CallOptions): Promise<number> {
    const path = `/ack/${encodeURIComponent(consumer)}`;
    return (await call<any>(this.#http, path, { eid: eventId }, options, { check: needs("acknowledged") })).acknowledged;
  }

  /**
   * Remove a channel with all its events now. Returns whether it was still there, but false also if
   * a first try has removed it whose answer was lost.
   */
  async dispose(producer: string, options?: CallOptions): Promise<boolean> {
    try {
      await call(this.#http, `/channel/${encodeURIComponent(producer)}`, undefined, options, { method: "DELETE" });
      return true;
    } catch (error) {
      if ((error as MegaphoneError).code !== "NOT_FOUND") throw error;
      return false;
    }
  }
}

const needs = (member: string) => (answer: object) =>
  member in answer ? undefined : new MegaphoneError("PROTOCOL_ERROR", `an answer has no \`${member}\``);
