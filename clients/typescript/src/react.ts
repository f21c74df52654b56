import { useCallback, useSyncExternalStore } from "react";
import type { Channel } from "./channel.js";
import type { Event } from "./inbox.js";

const LEFT_MS = 1_000;

interface Snapshot {
  events: readonly Event[];
  error?: unknown;
}

interface Store {
  snapshot: Snapshot;
  subscribe(changed: () => void): () => void;
}

const EMPTY: Snapshot = { events: [] };
const stores = new WeakMap<Channel, Map<string, Store>>();
const users = new WeakMap<Channel, number>();

/** A store begins to read for its first user, and ends a second after its last one. */
function storeOf(channel: Channel, stream: string, keep: number): Store {
  const key = keep + stream;
  const some = stores.get(channel) ?? new Map<string, Store>();
  stores.set(channel, some);
  let store = some.get(key);
  if (store) return store;
  const listeners = new Set<() => void>();
  let stop: (() => void) | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const show = (snapshot: Snapshot) => {
    made.snapshot = snapshot;
    for (const changed of listeners) changed();
  };
  const begin = () => {
    users.set(channel, (users.get(channel) ?? 0) + 1);
    stop = channel.stream(stream).subscribe(
      (event) => {
        const { events } = made.snapshot;
        if (keep) show({ events: [...events, event].slice(-keep) });
        else if (!events.length) show({ events: [event] });
      },
      (error) => show({ ...made.snapshot, error }),
    );
  };
  const end = () => {
    stop?.();
    stop = undefined;
    const left = users.get(channel)! - 1;
    users.set(channel, left);
    if (!left) channel.pause();
  };
  const made: Store = (store = {
    snapshot: EMPTY,
    subscribe(changed) {
      listeners.add(changed);
      clearTimeout(timer);
      if (!stop) begin();
      return () => {
        listeners.delete(changed);
        if (!listeners.size) timer = setTimeout(end, LEFT_MS);
      };
    },
  });
  some.set(key, made);
  return store;
}

function useEvents<T>(channel: Channel | undefined, stream: string, keep: number): readonly Event<T>[] {
  const store = channel && storeOf(channel, stream, keep);
  const { events, error } = useSyncExternalStore(
    useCallback((changed: () => void) => store?.subscribe(changed) ?? (() => {}), [store]),
    () => store?.snapshot ?? EMPTY,
    () => EMPTY,
  );
  if (error) throw error;
  return events;
}

/**
 * Return the last events of a stream: `keep` of them, 100 by default. Without a channel, none. The
 * channel is read while a component uses it, and a second longer. Throws the error that ended it.
 */
export const useStream = <T = any>(channel: Channel | undefined, stream: string, { keep = 100 }: { keep?: number } = {}) =>
  useEvents<T>(channel, stream, keep);

/** Return the body of the first event of a stream; undefined until it comes. */
export const useFirst = <T = any>(channel: Channel | undefined, stream: string): T | undefined =>
  useEvents<T>(channel, stream, 0)[0]?.body;
