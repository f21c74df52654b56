import { MegaphoneError } from "./errors.js";

const KEPT_EVENTS = 100;
/** How many characters may wait for a loop, and for how many an event counts at least: 1,000 events fill it. */
export const ROOM = 8 * 1024 * 1024;
export const LEAST_ROOM = 8_389;

/** An event, as its channel gave it to the app. */
export interface Event<T = any> {
  readonly id: string;
  readonly stream: string;
  /** When the broker took it. */
  readonly time: Date;
  readonly body: T;
}

/** What is read from a channel, in order: all events, or those of one stream. */
export interface Events<T = any> extends AsyncIterableIterator<Event<T>, undefined> {
  /** Throws the error that ended the channel, or `EVENTS_LOST`, after which a new iteration goes on. */
  next(): Promise<IteratorResult<Event<T>, undefined>>;
  /** Leave: as `break` does. What was not taken stays for whoever asks next. */
  return(): Promise<IteratorResult<Event<T>, undefined>>;
  /** Call a function for each event. Returns: a function that ends this. */
  subscribe(next: (event: Event<T>) => unknown, error?: (error: unknown) => unknown): () => void;
  /** @internal Count as dealt with what the app was given. */
  deal(): void;
}

/** An event, or a gap, on its way to the loops that want it. */
export interface Entry {
  /** None, if it is a gap. */
  readonly event: Event | undefined;
  /** How much of the room of a loop it takes. */
  readonly room: number;
  /** How many loops have not dealt with it. */
  left: number;
  /** What the app does about a gap. */
  dealing?: Promise<unknown>;
}

/** Somebody who iterates over all events, or over those of one stream. */
interface Loop {
  readonly stream: string | undefined;
  readonly items: Entry[];
  /** How much room they take. */
  room: number;
  /** What the app is dealing with. */
  handed?: Entry | undefined;
}

/** What an inbox needs of its channel. */
export interface Host {
  begin(): void;
  pause(): void;
  /** The app has dealt with an event, and with all before it. */
  dealt(id: string): void;
  /** Deals with a gap, if the app can. */
  onGap: (() => unknown) | undefined;
  /** Whether asking for the next event deals with the last one. */
  deals: boolean;
}

/** What was read from a channel, on its way to those who iterate over it. */
export interface Inbox {
  /** In their order, the events that not all have dealt with. The first one is not dealt with. */
  readonly pending: Entry[];
  /** Whether so much waits that the read pauses. */
  isFull: boolean;
  /** Whether nothing more comes. */
  isOver: boolean;
  /** Give an event, or a gap, to all who want it. */
  put(event?: Event, room?: number): void;
  iterate<T>(stream?: string): Events<T>;
  /** Tell the channel what all have dealt with. */
  settle(): void;
  /** The app has dealt with all that it was given. */
  dealAll(): void;
  /** Let nothing more come; what is here is still given. */
  end(error?: unknown): void;
}

export function newInbox(host: Host): Inbox {
  const loops = new Set<Loop>();
  const pending: Entry[] = [];
  /** What nobody took, for whoever asks later. */
  let kept: Entry[] = [];
  /** The last loop, if it has left. What it was dealing with counts as dealt with once somebody goes on. */
  let former: Loop[] = [];
  let failure: unknown;
  const waiting: (() => void)[] = [];

  const wake = () => {
    for (const resolve of waiting.splice(0)) resolve();
  };
  const holds = (room: number) => [...loops].some((loop) => loop.room >= room);
  const settle = () => {
    while (pending[0]?.left! < 1) host.dealt(pending.shift()!.event!.id);
  };
  const deal = (loop: Loop) => {
    if (loop.handed && host.deals) loop.handed.left--;
    loop.handed = undefined;
    settle();
  };
  /** Give an entry to a loop, if that wants it. */
  const offer = (loop: Loop, entry: Entry) => {
    const isWanted = !entry.event || loop.stream === undefined || loop.stream === entry.event.stream;
    if (isWanted) {
      entry.left++;
      loop.items.push(entry);
      loop.room += entry.room;
    }
    return isWanted;
  };
  /** Somebody took something, or has left. */
  const taken = () => {
    if (!inbox.isFull || holds(ROOM / 2)) return;
    inbox.isFull = false;
    host.begin();
  };

  const inbox: Inbox = {
    pending,
    isFull: false,
    isOver: false,
    settle,
    put(event, room = 0) {
      const entry: Entry = { event, room, left: 0 };
      if (event) pending.push(entry);
      else pending.length = 0; // of these, the broker knows nothing any more
      for (const loop of loops) offer(loop, entry);
      if (!entry.left) kept.push(entry);
      kept.splice(0, kept.length - KEPT_EVENTS);
      settle();
      if (holds(ROOM)) {
        inbox.isFull = true;
        host.pause();
      }
      wake();
    },
    iterate(stream) {
      const loop: Loop = { stream, items: [], room: 0 };
      const leave = () => {
        if (!loops.delete(loop)) return;
        const isLast = !loops.size;
        if (isLast) former = [loop];
        else deal(loop);
        if (isLast && stream === undefined) {
          inbox.isFull = false;
          host.pause();
          kept.push(...loop.items);
        } // Otherwise, what stays would fill the window of the broker, and hold back the others.
        else for (const entry of loop.items) if (!--entry.left) kept.push(entry);
        settle();
        taken();
        wake();
      };
      const run = async function* () {
        try {
          while (loops.has(loop)) {
            deal(loop);
            const entry = loop.items.shift();
            if (entry) {
              loop.room -= entry.room;
              taken();
              if (entry.event) yield (loop.handed = entry).event!;
              else if (host.onGap) await (entry.dealing ??= Promise.resolve().then(host.onGap));
              else throw new MegaphoneError("EVENTS_LOST", "events are missing here: fetch the current state");
            } else if (failure) throw failure;
            else if (inbox.isOver) return;
            else await new Promise<void>((resolve) => waiting.push(resolve));
          }
        } finally {
          leave();
        }
      };
      const events: any = run();
      former.forEach(deal);
      former = [];
      loops.add(loop);
      kept = kept.filter((entry) => {
        entry.left = 0; // what nobody wants now must not hold back the others
        return !offer(loop, entry);
      });
      settle();
      host.begin();
      return Object.assign(events, {
        deal: () => deal(loop),
        return() {
          leave();
          return events.next();
        },
        subscribe(next: (event: Event) => unknown, error?: (error: unknown) => unknown) {
          const run = async () => {
            for await (const event of events) await next(event);
          };
          run().catch(error);
          return events.return;
        },
      });
    },
    dealAll() {
      [...loops, ...former].forEach(deal);
    },
    end(error) {
      inbox.isOver = true;
      failure = error;
      wake();
    },
  };
  return inbox;
}
