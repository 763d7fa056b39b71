// graphile-worker: node graphile_worker.mjs install | seed FILE | work URL IN_FLIGHT SETTINGS
// The database is that of the environment (PGHOST …). SETTINGS: JSON for `worker` of its preset.

import { Logger, makeWorkerUtils, run } from "graphile-worker";

import { bodies, poster, slices } from "./post.mjs";

const [what, where, inFlight, settings] = process.argv.slice(2);
const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});
const worker = { connectionString: `postgresql://${process.env.PGUSER}@/${process.env.PGDATABASE}`, logger };

if (what === "work") {
  const post = poster(where, Number(inFlight));
  await run({
    preset: { worker: { ...worker, ...JSON.parse(settings) } },
    taskList: { post: (payload) => post(payload) },
    parsedCronItems: [],
  });
} else {
  const utils = await makeWorkerUtils({ preset: { worker } });
  await utils.migrate();
  if (what === "seed") {
    for (const some of slices(bodies(where), 10_000)) {
      await utils.addJobs(some.map((payload) => ({ identifier: "post", payload })));
    }
  }
  await utils.release();
}
