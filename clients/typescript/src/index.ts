import type { Calls } from "./calls.js";
import { Channel, type ChannelOptions, type Made } from "./channel.js";
import { Http, type Options } from "./http.js";
import type { Publisher, PublisherOptions } from "./publisher.js";
import { Reads } from "./reads.js";

export { Channel, type ChannelOptions, type Made, type State } from "./channel.js";
export { MegaphoneError } from "./errors.js";
export { Events, type Event } from "./events.js";
export type { CallOptions } from "./calling.js";
export type { CreateOptions, Created, Failure, Message, WriteOptions } from "./calls.js";
export type { Options } from "./http.js";
export type { Publisher, PublisherOptions } from "./publisher.js";

export interface Megaphone extends Calls {}

/** A client of one broker, or of many behind one address. */
export class Megaphone {
  readonly #http: Http;
  readonly #reads: Reads;

  /** `url` is `https://host/prefix`; in a page it may be a path, such as `/`. */
  constructor(url: string, options: Options = {}) {
    this.#http = new Http(url, options);
    this.#reads = new Reads(this.#http);
  }

  /**
   * Return a channel to read. A function in place of an address makes one: it is called at first use,
   * and again when the channel has gone, with what it returned before.
   */
  channel(address: string | ((former?: Made) => Promise<Made>), options: ChannelOptions = {}): Channel {
    return new Channel(this.#http, this.#reads, address, options);
  }

  /** Return what writes many events in batches, in the order of each channel. */
  async publisher(options?: PublisherOptions): Promise<Publisher> {
    const { Publisher } = await import("./publisher.js");
    return new Publisher(this.#http, options);
  }

  // What writes is loaded when it is used first, because most pages only read.
  static {
    for (const name of ["create", "write", "writeBatch", "exists", "ack", "dispose"] as const)
      (this.prototype as any)[name] = async function (this: Megaphone, ...given: []) {
        const { Calls } = await import("./calls.js");
        return (new Calls(this.#http) as any)[name](...given);
      };
  }
}
