import type { Share } from "./channel.js";
import { MegaphoneError } from "./errors.js";
import type { Line } from "./read.js";
import { randomId } from "./reads.js";
import { now } from "./time.js";

const BEAT_MS = 1_000;
const SILENT_BEATS = 2.5;
const NAME = "megaphone:reader";

/** What the tab that reads tells the others. */
interface Told {
  /** The last event before this line. */
  before: string | null | undefined;
  line?: Line;
  /** Events are missing before this one. */
  gap?: boolean;
}

/** Return the name of the reader, which all tabs of the browser have in common. */
function readerName(): string {
  try {
    return (localStorage[NAME] ??= randomId());
  } catch {
    return "tabs";
  }
}

/** Return a `share` for channels, by which a tab that hangs is replaced after so many milliseconds. */
export const tabsWithin =
  (beatMs: number): Share =>
  (read, own) => {
    if (read.acknowledges) throw new MegaphoneError("BAD_REQUEST", '`share` is only for `ack: "none"`');
    if (!globalThis.navigator?.locks || !globalThis.BroadcastChannel) return own;
    const name = "megaphone:" + read.readAddress;
    const { sink } = read;
    let others: BroadcastChannel | undefined;
    let abort = new AbortController();
    let timer: ReturnType<typeof setInterval> | undefined;
    let heardAt = 0;
    let release: (() => void) | undefined; // of the lock, which the tab that reads holds
    let before = read.received;

    const tell = (told: Omit<Told, "before">) => {
      if (release) others?.postMessage({ before, ...told });
      before = read.received;
    };
    read.reader = readerName();
    read.sink = {
      ...sink,
      take(line) {
        sink.take(line);
        tell({ line });
      },
      become(state) {
        sink.become(state);
        if (state === "open") before ??= read.received ?? "-"; // the others begin where this read began
      },
      gap() {
        sink.gap();
        before = read.received;
        tell({ gap: true });
      },
      ended(error) {
        end();
        sink.ended(error);
      },
    };

    const compete = async (steal = false) => {
      abort.abort();
      abort = new AbortController();
      const { signal } = abort;
      const lead = () =>
        new Promise<void>((resolve) => {
          if (!others) return resolve();
          release = resolve;
          before = read.received;
          tell({});
          own.begin();
        });
      const isOwn = await navigator.locks.request(name, steal ? { steal } : { signal }, lead).then(
        () => true,
        () => signal.aborted, // otherwise another tab has stolen the lock
      );
      if (isOwn) return;
      follow();
      void compete();
    };

    /** Stop reading, if this tab reads. */
    const follow = () => {
      if (release) own.end();
      release = undefined;
      heardAt = now();
    };

    const hear = ({ data: { before, line, gap } }: MessageEvent<Told>) => {
      heardAt = now();
      if (release || before == null) return;
      if (gap) read.opened(true, before);
      else if (read.received == null || !read.hasBegun) read.opened(false, before);
      // Whoever has missed something reads it, and lets the others hear it again.
      if (before !== read.received && !read.ids.has(before!)) void compete(true);
      else if (line) read.take(line);
    };

    const look = () => {
      if (release) tell({});
      else if (document.visibilityState === "visible" && now() - heardAt > (SILENT_BEATS + Math.random()) * beatMs) {
        heardAt = now();
        void compete(true);
      }
    };

    const end = () => {
      if (!others) return;
      clearInterval(timer);
      others.close();
      others = undefined;
      const give = release;
      follow();
      abort.abort();
      give?.();
    };

    return {
      begin() {
        others = new BroadcastChannel(name);
        others.onmessage = hear;
        heardAt = now();
        timer = setInterval(look, beatMs);
        void compete();
      },
      end,
    };
  };

/**
 * Lets all tabs of a browser share one read: `mp.channel(consumer, { share: tabs })`. One tab reads,
 * and the others hear from it. If it is closed, another one goes on; if it hangs, after 2.5 seconds.
 * Without Web Locks each tab reads for itself.
 */
export const tabs: Share = tabsWithin(BEAT_MS);
