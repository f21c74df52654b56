import { agentOf } from "./agents.js";
import { errorOf } from "./codes.js";
import { connect } from "./connection.js";
import type { MegaphoneError } from "./errors.js";
import type { Http } from "./http.js";
import type { Line, Read } from "./read.js";
import { onWake, readOne } from "./reads.js";
import { now } from "./time.js";

const MOST_CHANNELS = 100;
const TOGETHER_MS = 20;
const NO_ROUTE = /^(NOT_FOUND|HTTP_404|HTTP_405)$/;

/** What ends the read of one channel for good. A code that is not known may be of a newer broker that is busy. */
const FINAL = /^(BAD_REQUEST|UNAUTHENTICATED|TOKEN_EXPIRED|PERMISSION_DENIED|NOT_FOUND|TAKEN_OVER)$/;

/** Some reads that share a connection. */
interface Group {
  key: string;
  /** By their indices in the request, those that go on. */
  reads: Map<number, Read>;
  /** Whether one of the reads has not begun. */
  isFresh: boolean;
  /** Ends its connection. */
  abort: AbortController;
  /** Whether the client has cut it. */
  isCut?: boolean;
}

function cut(group: Group): void {
  group.isCut = true;
  group.abort.abort();
}

/**
 * The connections of a client that reads several channels. Channels that are asked in the same way
 * share one, up to 100 of them. A channel that is new is first read apart from those that are read
 * already, because only these may take over; as soon as it has begun, both connections become one.
 */
export class Many {
  readonly #http: Http;
  readonly #name: string;
  readonly #due = new Map<Read, number>();
  readonly #open = new Set<Group>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #unlisten: (() => void) | undefined;
  /** Whether each channel is read for itself: the broker, or a proxy, lets nobody read many. */
  #isApart = false;
  /** Whether that is only a guess, because requests of many channels get no answer, and how often it was right. */
  #isGuess = false;
  #guesses = 0;
  #hasShared = false;

  constructor(http: Http, name: string) {
    this.#http = http;
    this.#name = name;
  }

  /** Read a channel until it ends for good, or is removed. */
  add(read: Read): void {
    this.#unlisten ??= onWake(() => this.#wake());
    this.#plan(read, 0);
  }

  remove(read: Read): void {
    this.#due.delete(read);
    for (const group of this.#open)
      for (const [index, one] of group.reads)
        if (one === read) {
          group.reads.delete(index);
          cut(group);
        }
    this.#rest();
  }

  /** Try again at once, after a sleep. */
  #wake(): void {
    for (const group of this.#open) if ([...group.reads.values()].some((read) => read.isSilent())) cut(group);
    for (const read of this.#due.keys()) this.#plan(read, 0);
  }

  #rest(): void {
    if (this.#due.size || this.#open.size) return;
    this.#unlisten?.();
    this.#unlisten = undefined;
  }

  #plan(read: Read, waitMs: number): void {
    this.#due.set(read, now() + waitMs);
    this.#schedule(0);
  }

  /** Start what is due, but nothing that is due before a time. */
  #schedule(after: number): void {
    const times = [...this.#due.values()].filter((at) => at >= after);
    clearTimeout(this.#timer);
    if (times.length) this.#timer = setTimeout(() => this.#start(), Math.max(0, Math.min(...times) - now()));
  }

  #keyOf({ readAddress, acknowledges, beatMs, reader, streams, limit }: Read): string {
    const apart = limit === undefined ? "" : readAddress; // a limit counts for all channels of a connection
    return JSON.stringify([agentOf(readAddress), acknowledges, beatMs, reader, streams, apart]);
  }

  #start(): void {
    const until = now() + TOGETHER_MS;
    const most = this.#isApart ? 1 : MOST_CHANNELS;
    const groups = new Map<string, Read[][]>();
    for (const [read, at] of this.#due) {
      const key = this.#keyOf(read);
      const isWaited = !this.#isApart && !read.hasBegun && [...this.#open].some((one) => one.key === key && one.isFresh);
      if (at > until || isWaited) continue;
      this.#due.delete(read);
      const some = groups.get(key + read.hasBegun) ?? [];
      groups.set(key + read.hasBegun, some);
      const room = some.find((one) => one.length < most && one.every(({ readAddress }) => readAddress !== read.readAddress));
      if (room) room.push(read);
      else some.push([read]);
    }
    for (const some of groups.values()) for (const group of some) void this.#connect(group);
    this.#schedule(until);
  }

  /** Make one connection of those that are asked in the same way, if there are several. */
  #merge(key: string): void {
    const same = [...this.#open].filter((one) => one.key === key && !one.isFresh);
    const consumers = same.flatMap(({ reads }) => [...reads.values()].map((read) => read.readAddress));
    if (same.length > 1 && consumers.length <= MOST_CHANNELS && new Set(consumers).size === consumers.length && !this.#isApart)
      for (const group of same) cut(group);
  }

  async #connect(all: Read[]): Promise<void> {
    const [first] = all as [Read];
    const abort = new AbortController();
    const group: Group = { key: this.#keyOf(first), reads: new Map(all.entries()), isFresh: !first.hasBegun, abort };
    const { reads } = group;
    const areMany = all.length > 1;
    this.#open.add(group);
    let error: MegaphoneError | undefined;
    let isAtOnce: boolean | undefined;
    try {
      await (areMany ? this.#readMany(group, all) : readOne(this.#http, abort, first, this.#name, () => this.#begun(group)));
    } catch (failure) {
      isAtOnce = group.isCut || this.#turnsApart(failure as MegaphoneError, areMany);
      if (!isAtOnce) error = failure as MegaphoneError;
    }
    this.#open.delete(group);
    const waits = [...reads.values()].map((read) => [read, isAtOnce ? 0 : error ? read.failed(error) : read.ended()] as const);
    // All are read again at the same time, so that they share a connection again.
    const most = Math.max(0, ...waits.map(([, waitMs]) => waitMs ?? 0));
    for (const [read, waitMs] of waits) if (waitMs !== undefined) this.#plan(read, most);
    this.#schedule(0);
    this.#rest();
  }

  /** Decide after a failure whether channels are read apart. Returns: whether that is new, so that no pause is needed. */
  #turnsApart({ code }: MegaphoneError, wereMany: boolean): boolean {
    const isUnanswered = code === "CONNECTION_FAILED";
    if (!wereMany) {
      if (this.#isGuess && isUnanswered) this.#isApart = this.#isGuess = false; // there is no connection for anything
      return false;
    }
    if (NO_ROUTE.test(code)) return (this.#isApart = true); // the broker is older than reads of many channels
    // A proxy that lets pages of other origins only read one channel fails all other requests.
    if (isUnanswered && !this.#hasShared) this.#isApart = this.#isGuess = true;
    return false;
  }

  /** Some reads of a group have begun, or are done. */
  #begun(group: Group): void {
    if (this.#isGuess && group.reads.size < 2) {
      this.#isGuess = false;
      this.#isApart = ++this.#guesses > 1; // once may have been chance
    }
    if (!group.isFresh || ![...group.reads.values()].every((read) => read.hasBegun)) return;
    group.isFresh = false;
    this.#merge(group.key);
    this.#start();
  }

  #readMany(group: Group, all: Read[]): Promise<void> {
    const [first] = all as [Read];
    const { reads } = group;
    const asked = all.map((read) => read.ask(this.#name, this.#http.polls));
    const channels = all.map(({ readAddress: address }, index) => ({ address, after: asked[index]!.after }));
    // After news of one channel, what came meanwhile is wanted of all. Otherwise one event that is new for any of them.
    const common = asked.find(({ wait_ms }) => !wait_ms) ?? asked[0]!;
    const limit = common.limit && asked.reduce((sum, { limit }) => sum + limit - 1, 1);
    const body = JSON.stringify({ ...common, after: undefined, limit, channels });
    const headers = { "content-type": "application/json", "megaphone-agent": agentOf(first.readAddress) };
    return connect(this.#http, group.abort, {
      path: "/read",
      request: { method: "POST", body, headers },
      beatMs: first.beatMs,
      opened: () => void (this.#hasShared = true),
      take: (line) => {
        for (const one of reads.values()) one.take();
        const read = reads.get(line?.channel!);
        if (!read || !line) return;
        if (line.begun) read.opened(line.recovered === false, line.position);
        else if (line.done) this.#done(group, read, line);
        else return read.take(line);
        this.#begun(group);
      },
    });
  }

  /** The read of one channel of many is done. */
  #done({ reads }: Group, read: Read, { channel, code, message = "", retryAfter }: Line): void {
    reads.delete(channel!);
    const waitMs = code ? read.failed(errorOf(code, message, retryAfter, FINAL.test(code) ? 400 : 503)) : read.ended();
    // A moment later, because other channels may be done then too.
    if (waitMs !== undefined) this.#plan(read, Math.max(waitMs, TOGETHER_MS));
  }
}
