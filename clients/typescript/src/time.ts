export const now = () => performance.now();

/** How long to wait before the next try: a random part of a time that doubles with each failure. */
export const waitMs = (failures: number, leastMs = 0) => Math.max(Math.random() * Math.min(30_000, 100 * 2 ** failures), leastMs);
