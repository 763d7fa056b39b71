// pg-boss: node pg_boss.mjs install | seed FILE | work URL IN_FLIGHT SETTINGS
// The database is that of the environment (PGHOST …). SETTINGS: JSON of {boss, work}, the options of the instance and
// of work(). Each job of a batch is settled by itself, so that one that fails costs no other.

import { PgBoss } from "pg-boss";

import { bodies, poster, slices } from "./post.mjs";

const QUEUE = "post";
const [what, where, inFlight, settings] = process.argv.slice(2);
const options = what === "work" ? JSON.parse(settings) : { boss: { supervise: false, schedule: false } };
const { PGHOST: host, PGPORT: port, PGUSER: user, PGDATABASE: database } = process.env;
const boss = new PgBoss({ host, port: Number(port), user, database, ...options.boss });
boss.on("error", (error) => console.error(error));
await boss.start();

if (what === "work") {
  const post = poster(where, Number(inFlight));
  const settled = ({ id, data }) =>
    post(data).then(
      () => ({ id, status: "completed" }),
      (error) => ({ id, status: "failed", output: { message: error.message } }),
    );
  await boss.work(QUEUE, { ...options.work, perJobResults: true }, (jobs) => Promise.all(jobs.map(settled)));
  process.on("SIGTERM", () => boss.stop().then(() => process.exit(0)));
} else {
  await boss.createQueue(QUEUE, { partition: true });
  if (what === "seed") {
    for (const some of slices(bodies(where), 10_000)) await boss.insert(QUEUE, some.map((data) => ({ data })));
  }
  await boss.stop({ graceful: false });
}
