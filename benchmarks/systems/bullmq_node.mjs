// BullMQ on Node, both sides: `node bullmq_node.mjs ENVIRONMENT MODE URL '{"..."}'`. See https://docs.bullmq.io.
// It speaks as `program.py` does, and counts into the same files as `benchmarks.tally`.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [folder, mode, url, json] = process.argv.slice(2);
const sizes = JSON.parse(json);
const { Queue, Worker } = createRequire(path.join(folder, "package.json"))("bullmq");
const { hostname: host, port, password, pathname } = new URL(url);
const connection = { host, port: Number(port), password: password || undefined, db: Number(pathname.slice(1) || 0),
  maxRetriesPerRequest: null };

const now = () => process.hrtime.bigint(); // the monotonic clock, as in Python
const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

// ---- what is told to the driver

function mapped(kind, length) {
  const file = fs.openSync(path.join(process.env.STREAMQ_BENCH_TALLY, `${process.pid}.${kind}`), "w+");
  fs.ftruncateSync(file, length * 8);
  const word = Buffer.alloc(8);
  return (place, value) => {
    word.writeBigInt64LE(BigInt(value));
    fs.writeSync(file, word, 0, 8, place * 8);
  };
}

let counted = 0;
let told = -1;
let count;
function done() {
  if (!count) {
    count = mapped("count", 40_000);
    setInterval(() => { if (told !== counted) count(0, (told = counted)); }, 2);
  }
  counted += 1;
  if (counted % 100 === 0) { count(counted / 100, now()); count(0, (told = counted)); }
}

let kept = 0;
let keep;
function note(argument) {
  const late = now() - BigInt(argument.split(" ")[0]);
  keep ??= mapped("values", 100_000);
  keep(++kept, late);
  keep(0, kept);
}

const journal = (what, argument) => fs.appendFileSync(path.join(process.env.STREAMQ_BENCH_TALLY, "journal"),
  `${what} ${argument.split(/\s+/)[1]} ${process.pid} ${now()} 1\n`);

const bodies = {
  noop: async () => done(),
  io: async () => { await sleep(50); done(); },
  cpu: async (x) => { const until = performance.now() + parseFloat(x); while (performance.now() < until); done(); },
  clock: async (x) => note(x),
  long: async (x) => { journal("start", x); await sleep(parseFloat(x)); journal("end", x); },
};

// ---- the two sides

function work({ concurrency, setting = "default" }) {
  const fast = setting === "fast" ? { lockDuration: 5000, stalledInterval: 5000 } : {};
  new Worker("bench", (job) => bodies[job.name](job.data.x), { connection, concurrency, ...fast });
}

const argument = (n, size) => `x ${n} `.padEnd(size, "x");

async function timed(step, seconds) {
  const span = async (s) => { let n = 0; const end = performance.now() + s * 1000; while (performance.now() < end) n += await step(); return n; };
  await span(seconds / 10);
  const cpu = process.cpuUsage();
  const begun = performance.now();
  const n = await span(seconds);
  const spent = process.cpuUsage(cpu);
  return { per_second: n / ((performance.now() - begun) / 1000), cpu_us: (spent.user + spent.system) / n, count: n };
}

async function fill(queue, { count: total, job = "noop", size = 120, words = job === "cpu" ? "1.0" : "" }) {
  const begun = performance.now();
  for (let start = 0; start < total; start += 1000) {
    const some = Array.from({ length: Math.min(1000, total - start) }, (_, i) => ({ name: job,
      data: { x: words ? `${words} j${start + i} `.padEnd(size, "x") : argument(start + i, size) } }));
    await queue.addBulk(some);
  }
  return { per_second: total / ((performance.now() - begun) / 1000) };
}

async function listed(queue, { file, job }) {
  const some = JSON.parse(fs.readFileSync(file, "utf8")).map((x) => ({ name: job, data: { x } }));
  const began_ns = Number(now());
  for (let start = 0; start < some.length; start += 1000) await queue.addBulk(some.slice(start, start + 1000));
  return { began_ns };
}

async function pings(queue, { count: total, per_second }) {
  const begun = now() + 50_000_000n;
  for (let n = 0; n < total; n++) {
    const due = begun + BigInt(Math.round((n * 1e9) / per_second));
    while (now() < due) await sleep(Math.max(0, Number(due - now()) / 1e6 - 0.5));
    await queue.add("clock", { x: `${due} `.padEnd(120, "x") });
  }
  return {};
}

async function delays(queue, { count: total, shortest_s, longest_s }) {
  for (let n = 0; n < total; n++) {
    const delay = (shortest_s + ((n * 0.618) % 1) * (longest_s - shortest_s)) * 1000;
    await queue.add("clock", { x: `${now() + BigInt(Math.round(delay * 1e6))} `.padEnd(120, "x") }, { delay: Math.round(delay) });
    await sleep(2);
  }
  return {};
}

const modes = {
  one: (queue, { seconds, size = 120 }) => timed(async () => { await queue.add("noop", { x: argument(0, size) }); return 1; }, seconds),
  concurrent: (queue, { seconds, size = 120 }) => timed(async () => {
    await Promise.all(Array.from({ length: 20 }, async () => { for (let n = 0; n < 10; n++) await queue.add("noop", { x: argument(0, size) }); }));
    return 200;
  }, seconds),
  many: async (queue, { seconds, size = 120 }) => ({ ...(await timed(async () => {
    await queue.addBulk(Array.from({ length: 1000 }, (_, n) => ({ name: "noop", data: { x: argument(n, size) } })));
    return 1000;
  }, seconds)), has_bulk: true }),
  fill, listed, pings, delays,
};

if (mode === "work") {
  work(sizes);
} else {
  const queue = new Queue("bench", { connection });
  await queue.waitUntilReady();
  console.log(JSON.stringify(await modes[mode](queue, sizes)));
  await queue.close();
}
