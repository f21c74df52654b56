const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 30_000;

export const now = () => performance.now();

/** Wait, or until the signal is given. */
export const sleep = (ms: number, signal?: AbortSignal) =>
  new Promise<void>((resolve) => {
    const stop = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      resolve();
    };
    const timer = setTimeout(stop, ms);
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
  });

/** How long to wait before the next try: a random part of a time that doubles each time. */
export class Backoff {
  failures = 0;

  constructor(readonly longestMs = LONGEST_WAIT_MS) {}

  next(atLeastS = 0): number {
    const mostMs = Math.min(this.longestMs, FIRST_WAIT_MS * 2 ** this.failures++);
    return Math.max(Math.random() * mostMs, atLeastS * 1000);
  }

  reset(): void {
    this.failures = 0;
  }
}
