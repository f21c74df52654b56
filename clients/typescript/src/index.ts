import type { Calls } from "./calls.js";
import { type Address, type Channel, type ChannelOptions, newChannel } from "./channel.js";
import { type Options, newHttp } from "./http.js";
import { newReads } from "./reads.js";

export { MegaphoneError } from "./errors.js";
export type { Address, Channel, ChannelOptions, Made, State } from "./channel.js";
export type { CallOptions } from "./calling.js";
export type { CreateOptions, Created, Failure, Message, WriteOptions } from "./calls.js";
export type { Event, Events } from "./inbox.js";
export type { Options } from "./http.js";
export type { Publisher, PublisherOptions } from "./publisher.js";

export interface Megaphone extends Calls {}

/** A client of one broker, or of many behind one address. */
export class Megaphone {
  /**
   * Return a channel to read. A function in place of an address makes one: it is called at first use,
   * and again when the channel has gone, with what it returned before.
   */
  readonly channel: (address: Address, options?: ChannelOptions) => Channel;

  /** `url` is `https://host/prefix`; in a page it may be a path, such as `/`. */
  constructor(url: string, options: Options = {}) {
    const http = newHttp(url, options);
    const reads = newReads(http);
    this.channel = (address, options = {}) => newChannel(http, reads, address, options);
    // What writes is loaded when it is used first, because most pages only read.
    for (const name of ["create", "write", "writeBatch", "exists", "ack", "dispose", "publisher"] as const)
      (this as any)[name] = async (...given: []) => (new (await import("./calls.js")).Calls(http) as any)[name](...given);
  }
}
