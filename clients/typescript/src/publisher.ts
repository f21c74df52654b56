import { agentOf } from "./agents.js";
import { callOnce, mayBeDone, sleep, unknownAfter } from "./calling.js";
import { errorOf } from "./codes.js";
import { MegaphoneError } from "./errors.js";
import type { Http } from "./http.js";
import { randomId } from "./reads.js";
import { now, waitMs } from "./time.js";

const LANES_AT_ONCE = 64;
const TOO_LARGE = /^(BAD_REQUEST|PAYLOAD_TOO_LARGE)$/;

interface Again {
  again: Sent[];
  retryAfterS: number;
}

/** An answer to a batch. */
interface Answer {
  failures: { index: number; reason: string }[];
  eids?: string[];
}

const NONE: Again = { again: [], retryAfterS: 0 };

export interface PublisherOptions {
  /** How long a batch waits for more events: 5 ms by default. */
  lingerMs?: number;
  /** The most events of a batch: 100 by default. */
  maxBatch?: number;
  /** The most bytes of a batch of several events: 262,144 by default. */
  maxBytes?: number;
  /** How many events may be on their way: 1,000 by default. */
  maxPending?: number;
  /** How long an event is tried, from its first try on. That of the client by default. */
  timeoutMs?: number;
}

/** An event on its way. */
export class Sent {
  /** @internal */ readonly result: Promise<string | null>;
  /** @internal */ settle!: (result: string | null | Error) => void;
  /** @internal Until when it may be tried, once it was tried first. */ deadline: number | undefined;
  /** @internal Whether a try may have had its effect. */ isUnknown = false;
  /** @internal */ isDone = false;
  /** @internal Why the last try failed. */ last: MegaphoneError | undefined;
  /** @internal Whether the app has asked for its id. */ isObserved = false;
  /** @internal */ readonly length: number;

  /** @internal */
  constructor(
    readonly producer: string,
    readonly stream: string,
    readonly json: string,
  ) {
    this.length = new TextEncoder().encode(json).length;
    this.result = new Promise((resolve, reject) => {
      this.settle = (result) => (result instanceof Error ? reject(result) : resolve(result));
    });
    this.result.catch(() => {}); // `flush` throws what nobody saw
  }

  /** The id of the event, when the broker has it; null, if an older broker does not name it. Throws as `write` does. */
  get id(): Promise<string | null> {
    this.isObserved = true;
    return this.result;
  }
}

/**
 * Writes many events in batches. The events of one channel are written in the order of `send`, those
 * of several channels side by side.
 */
export class Publisher {
  readonly #http: Http;
  readonly #options: Required<PublisherOptions>;
  /** By channel, the events that wait, and the function that ends lingering. */
  readonly #lanes = new Map<string, { waiting: Sent[]; hurry: () => void }>();
  #busy = 0;
  #pending = 0;
  #isFlushing = false;
  #isClosed = false;
  #failed: [Sent, Error][] = [];
  #changed: (() => void)[] = [];

  /** Use `Megaphone.publisher`. @internal */
  constructor(http: Http, options: PublisherOptions = {}) {
    const { lingerMs = 5, maxBatch = 100, maxBytes = 262_144, maxPending = 1_000 } = options;
    const { timeoutMs = http.options.timeoutMs ?? 30_000 } = options;
    this.#http = http;
    this.#options = { lingerMs, maxBatch, maxBytes, maxPending, timeoutMs };
  }

  /**
   * Hand over an event; waits while `maxPending` are on their way. `(await send(…)).id` is a promise
   * of the event's id. Nobody needs to await that: `flush` throws the first error that nobody saw.
   */
  async send(producer: string, stream: string, body: unknown): Promise<Sent> {
    const json = JSON.stringify(body);
    if (json === undefined) throw new TypeError("the body cannot be JSON");
    const sent = new Sent(producer, stream, json);
    await this.#until(() => this.#isClosed || this.#pending < this.#options.maxPending);
    if (this.#isClosed) throw new TypeError("the publisher is closed");
    this.#pending++;
    this.#add(sent);
    return sent;
  }

  /** Send everything, and wait for all answers. Throws the first error of an event that nobody saw. */
  async flush(): Promise<void> {
    this.#isFlushing = true;
    for (const { hurry } of this.#lanes.values()) hurry();
    await this.#until(() => !this.#pending);
    this.#isFlushing = false;
    const failed = this.#failed.splice(0).find(([sent]) => !sent.isObserved);
    if (failed) throw failed[1];
  }

  /** Flush, and take no more events. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#wake();
    await this.flush();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #until(holds: () => boolean): Promise<void> {
    while (!holds()) await new Promise<void>((resolve) => this.#changed.push(resolve));
  }

  #wake(): void {
    for (const resolve of this.#changed.splice(0)) resolve();
  }

  // -- Lanes: the events of a channel go out in one batch at a time

  #add(sent: Sent): void {
    const { maxBatch, maxBytes } = this.#options;
    const lane = this.#lanes.get(sent.producer);
    if (!lane) {
      this.#lanes.set(sent.producer, { waiting: [sent], hurry: () => {} });
      void this.#run(sent.producer);
      return;
    }
    lane.waiting.push(sent);
    if (lane.waiting.length >= maxBatch || lane.waiting.reduce((sum, { length }) => sum + length, 0) >= maxBytes) lane.hurry();
  }

  /** Send the events of a lane, until there are none. */
  async #run(producer: string): Promise<void> {
    const lane = this.#lanes.get(producer)!;
    const { lingerMs, maxBatch } = this.#options;
    for (let failures = 0; lane.waiting.length; ) {
      if (!this.#isFlushing && !failures && lane.waiting.length < maxBatch)
        await new Promise<void>((resolve) => {
          lane.hurry = resolve;
          setTimeout(resolve, lingerMs);
        });
      await this.#until(() => this.#busy < LANES_AT_ONCE);
      this.#busy++;
      const { again, retryAfterS } = await this.#deliver(this.#next(lane.waiting));
      this.#busy--;
      this.#wake();
      lane.waiting.unshift(...again);
      if (again.length) await sleep(waitMs(failures++, retryAfterS * 1000));
      else failures = 0;
    }
    this.#lanes.delete(producer);
  }

  /** Take the next batch. */
  #next(waiting: Sent[]): Sent[] {
    let bytes = 0;
    let count = 0;
    for (const { length } of waiting.slice(0, this.#options.maxBatch)) {
      bytes += length;
      if (count && bytes > this.#options.maxBytes) break;
      count++;
    }
    return waiting.splice(0, count);
  }

  /** Send a batch until it is answered. Returns: the events to try again, in their order. */
  async #deliver(batch: Sent[]): Promise<Again> {
    const key = randomId(); // covers an event by its place in this batch
    for (let failures = 0; ; failures++) {
      const begun = now();
      for (const sent of batch) {
        sent.deadline ??= begun + this.#options.timeoutMs;
        if (sent.last && sent.deadline <= begun) this.#refuse(sent, sent.last);
      }
      const open = batch.filter(({ isDone }) => !isDone);
      if (!open.length) return NONE;
      const deadline = Math.min(...open.map((sent) => sent.deadline!));
      try {
        const refused = this.#answered(batch, await this.#ask(batch, key, deadline - begun));
        const unknown = refused.find(([{ isUnknown }]) => isUnknown);
        // In another batch, the broker could not tell whether it has taken that already.
        if (unknown) throw unknown[1];
        return { again: refused.map(([sent]) => sent), retryAfterS: 0 };
      } catch (error) {
        if (!(error instanceof MegaphoneError)) {
          for (const sent of open) this.#settle(sent, error as Error); // of a function of the app
          return NONE;
        }
        const { mayHeal, retryAfterS } = error;
        if (batch.length > 1 && TOO_LARGE.test(error.code)) return this.#deliverEach(batch);
        for (const sent of open) {
          sent.isUnknown ||= mayBeDone(error);
          sent.last = error;
        }
        const pauseMs = waitMs(failures, retryAfterS * 1000);
        const nextAnswer = 2 * now() - begun + pauseMs;
        if (!mayHeal || nextAnswer >= deadline) {
          const mayGoOn = (sent: Sent) => mayHeal && !sent.isDone && !sent.isUnknown && nextAnswer < sent.deadline!;
          for (const sent of open) if (!mayGoOn(sent)) this.#refuse(sent, error);
          return { again: open.filter(mayGoOn), retryAfterS };
        }
        await sleep(pauseMs);
      }
    }
  }

  /** Find out which event of a refused batch is wrong. The broker took none of them. */
  async #deliverEach(batch: Sent[]): Promise<Again> {
    for (const [index, sent] of batch.entries()) {
      const { again, retryAfterS } = await this.#deliver([sent]);
      if (again.length) return { again: [...again, ...batch.slice(index + 1)], retryAfterS };
    }
    return NONE;
  }

  #ask(batch: Sent[], key: string, timeoutMs: number): Promise<Answer> {
    const [{ producer }] = batch as [Sent];
    const messages = batch.map(({ stream, json }) => `{"streamId":${JSON.stringify(stream)},"body":${json}}`);
    const body = `{"channels":${JSON.stringify([producer])},"messages":[${messages}]}`;
    const check = ({ failures }: Answer) =>
      Array.isArray(failures) && failures.every(({ index }) => batch[index]) ? undefined : new MegaphoneError("PROTOCOL_ERROR", "an answer to a batch names no failures of it");
    return callOnce(this.#http, "/write-batch", body, timeoutMs, { key, agent: agentOf(producer), check });
  }

  /** Settle the events of a batch. Returns: those that the broker may take later, and why it did not. */
  #answered(batch: Sent[], { failures, eids }: Answer): [Sent, MegaphoneError][] {
    const again: [Sent, MegaphoneError][] = [];
    const refused = new Map(failures.map(({ index, reason }) => [index, errorOf(reason, "the broker did not take it: " + reason)]));
    for (const [index, sent] of batch.entries()) {
      const error = refused.get(index);
      if (!error) this.#settle(sent, eids?.length === batch.length ? eids[index]! : null);
      else if (mayBeDone(error)) this.#settle(sent, unknownAfter(error));
      else if (error.mayHeal && now() < sent.deadline!) again.push([sent, (sent.last = error)]);
      else this.#refuse(sent, error);
    }
    return again;
  }

  // -- Results

  #refuse(sent: Sent, error: MegaphoneError): void {
    this.#settle(sent, sent.isUnknown ? unknownAfter(error) : error);
  }

  #settle(sent: Sent, result: string | null | Error): void {
    if (sent.isDone) return;
    sent.isDone = true;
    if (result instanceof Error) this.#failed.push([sent, result]);
    sent.settle(result);
    this.#pending--;
    this.#wake();
  }
}
