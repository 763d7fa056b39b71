// The POST that every Node peer makes of a job, and the bodies that it is given: lines of an id, a space and the body.

import { readFileSync } from "node:fs";

import { Pool } from "undici";

export function bodies(path) {
  const lines = readFileSync(path, "ascii").split("\n").slice(0, -1);
  return lines.map((line) => ({ id: line.slice(0, 36), body: line.slice(37) }));
}

export function* slices(all, size) {
  for (let from = 0; from < all.length; from += size) yield all.slice(from, from + size);
}

/** Return a function that POSTs a body and throws unless a 2xx comes back. */
export function poster(url, inFlight) {
  const { origin, pathname: path } = new URL(url);
  const pool = new Pool(origin, { connections: inFlight, pipelining: 1 });
  return async ({ id, body }) => {
    const headers = {
      "User-Agent": "peer",
      "Content-Type": "application/x-www-form-urlencoded",
      "webhook-id": id,
      "webhook-timestamp": String(Math.floor(Date.now() / 1000)),
    };
    const answer = await pool.request({ path, method: "POST", headers, body });
    await answer.body.dump();
    if (answer.statusCode < 200 || answer.statusCode > 299) throw new Error(`status ${answer.statusCode}`);
  };
}
