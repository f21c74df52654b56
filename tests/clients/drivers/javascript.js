// What the drivers of the TypeScript client share; the README of the suite has their protocol.

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

function described(error) {
  return { class: error?.name ?? typeof error, code: error?.code ?? null, message: String(error?.message ?? error) };
}

export class Driver {
  #clients = new Map();
  #stops = new Map();
  #calls = {
    open: ({ client, url, timeout_s }) => {
      const options = { ...this.options, ...(timeout_s && { timeoutMs: timeout_s * 1000 }) };
      this.#clients.set(client, { api: new this.Megaphone(url, options), channels: new Set() });
      return null;
    },
    close: async ({ client }) => {
      const { channels } = this.#clients.get(client);
      this.#clients.delete(client);
      await Promise.all([...channels].map((channel) => channel.close()));
      return null;
    },
    create: async (command) => {
      const { producer, consumer } = await this.#api(command).create();
      return { producer, consumer };
    },
    write: (command) => {
      const { producer, stream, body, timeout_s } = command;
      return this.#api(command).write(producer, stream, body, timeout_s ? { timeoutMs: timeout_s * 1000 } : {});
    },
    batch: async (command) => {
      const failures = await this.#api(command).writeBatch(command.producers, command.messages);
      return failures.map(({ producer, index, reason }) => [producer, index, reason]);
    },
    publish: async (command) => {
      const publisher = await this.#api(command).publisher();
      const all = [];
      for (const [producer, stream, body] of command.items) {
        const sent = await publisher.send(producer, stream, body);
        all.push(sent.id.then((id) => ({ id }), described));
      }
      await publisher.close();
      return Promise.all(all);
    },
    exists: (command) => this.#api(command).exists(command.addresses),
    ack: (command) => this.#api(command).ack(command.consumer, command.event),
    first: async (command) => {
      const { client, consumer, stream, timeout_s } = command;
      const channel = this.#channel(client, consumer, { ack: "auto" });
      try {
        return await channel.first(stream, timeout_s ? { signal: AbortSignal.timeout(timeout_s * 1000) } : {});
      } finally {
        await channel.close();
      }
    },
  };

  // `options` are those of all clients.
  constructor(Megaphone, report, options = {}) {
    this.Megaphone = Megaphone;
    this.report = report;
    this.options = options;
  }

  #api({ client }) {
    return this.#clients.get(client).api;
  }

  #channel(client, consumer, options) {
    const { api, channels } = this.#clients.get(client);
    const channel = api.channel(consumer, options);
    channels.add(channel);
    return channel;
  }

  async carryOut(command) {
    if (command.do === "read") return this.#read(command);
    if (command.do === "subscribe") return this.#subscribe(command);
    if (command.do === "stop") return this.#stops.get(command.read)?.();
    const { call } = command;
    try {
      const result = await this.#calls[command.do](command);
      this.report({ is: "done", call, result });
    } catch (error) {
      this.report({ is: "error", call, ...described(error) });
    }
  }

  async close() {
    for (const stop of this.#stops.values()) stop();
    await Promise.all([...this.#clients.keys()].map((client) => this.#calls.close({ client })));
  }

  #options({ ack = "auto", after, gaps, heartbeat_s, limit, read, streams, do: what }) {
    return {
      ack,
      ...(limit && { limit }),
      ...(streams && what === "read" && { streams }),
      ...(after && { after }),
      ...(heartbeat_s && { heartbeatMs: heartbeat_s * 1000 }),
      ...(gaps === "call" && { onGap: () => this.report({ is: "gap", read }) }),
    };
  }

  async #read(command) {
    const { read, client, consumers } = command;
    const channels = consumers.map((consumer) => this.#channel(client, consumer, this.#options(command)));
    const cursor = () => (channels.length === 1 ? channels[0].cursor ?? null : null);
    let isStopped = false;
    this.#stops.set(read, () => {
      isStopped = true;
      for (const events of current.values()) void events.return();
    });
    const current = new Map();
    const app = new Application(this, command, () => isStopped, current);
    try {
      await Promise.all(channels.map((channel, at) => app.run(channel, consumers.length > 1 ? { consumer: consumers[at] } : {})));
      await Promise.all(channels.map((channel) => channel.close()));
      this.report({ is: "ended", read, cursor: cursor() });
    } catch (error) {
      await Promise.all(channels.map((channel) => channel.close()));
      this.report({ is: "error", read, cursor: cursor(), ...described(error) });
    }
    this.#stops.delete(read);
  }

  async #subscribe(command) {
    const { read, client, consumer, streams } = command;
    const channel = this.#channel(client, consumer, this.#options(command));
    const current = new Map();
    let isStopped = false;
    this.#stops.set(read, () => {
      isStopped = true;
      for (const events of current.values()) void events.return();
    });
    const app = new Application(this, command, () => isStopped, current);
    try {
      await Promise.all(streams.map((stream) => app.run({ [Symbol.asyncIterator]: () => channel.stream(stream), ack: (event) => channel.ack(event) }, {})));
      await channel.close();
      this.report({ is: "ended", read, cursor: null });
    } catch (error) {
      await channel.close();
      this.report({ is: "error", read, cursor: null, ...described(error) });
    }
    this.#stops.delete(read);
  }
}

// Takes the events of one read, and is busy with each as the command says.
class Application {
  #count = 0;

  constructor(driver, command, isStopped, current) {
    this.driver = driver;
    this.command = command;
    this.isStopped = isStopped;
    this.current = current;
  }

  async run(channel, whose) {
    while (!this.isStopped())
      try {
        const events = channel[Symbol.asyncIterator]();
        this.current.set(channel, events);
        for await (const event of events) {
          await this.#dealWith(channel, event, whose);
          if (this.isStopped()) return;
        }
        return;
      } catch (error) {
        if (error.code !== "EVENTS_LOST") throw error;
        this.driver.report({ is: "gap", read: this.command.read });
      }
  }

  async #dealWith(channel, event, whose) {
    const { read, pauses = {}, ack, ack_every = 1 } = this.command;
    const { id, stream, body } = event;
    this.#count += 1;
    this.driver.report({ is: "event", read, id, stream, body, ...whose });
    const pause = pauses?.[this.#count] ?? pauses?.["*"];
    if (pause) await sleep(pause);
    if (ack !== "manual" || this.#count % ack_every) return;
    await channel.ack(event).catch((error) => this.driver.report({ is: "unacked", read, id, ...described(error) }));
  }
}
