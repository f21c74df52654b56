import { createServer } from "node:http";

/** A server whose answers a test gives by hand, since it stands for a broker that misbehaves. */
export async function serve(answer) {
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    const url = new URL(request.url, "http://host");
    answer({ method: request.method, path: url.pathname, query: Object.fromEntries(url.searchParams), headers: request.headers, body }, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { url: `http://127.0.0.1:${server.address().port}`, close };
}

export const line = (id, stream = "s", body = id) => JSON.stringify({ sid: stream, eid: id, ts: "2026-01-02T03:04:05Z", body }) + "\n";
