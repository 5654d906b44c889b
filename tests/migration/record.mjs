// Fills a queue with the BullMQ that is installed in a folder, and prints every key of it as the Redis commands that
// make it again, one JSON array a line. See record.sh, which does so for the versions that the tests need.
//
//   node record.mjs FOLDER URL > RECORDING
import { createRequire } from 'node:module';
import path from 'node:path';

Error.stackTraceLimit = 0; // no paths of the machine that records
const [folder, url] = process.argv.slice(2);
const require = createRequire(path.resolve(folder, 'package.json'));
const { FlowProducer, Queue, Worker } = require('bullmq');
const Redis = require('ioredis');
const { hostname: host, port, password, pathname } = new URL(url);
const address = { host, port: Number(port), password: password || undefined, db: Number(pathname.slice(1) || 0) };
const connection = { ...address, maxRetriesPerRequest: null };
const version = require('bullmq/package.json').version;

const queue = new Queue('user-data', { connection });
const users = (from, to) => Array.from({ length: to - from }, (_, n) => from + n);

// Failed and completed first, while nothing else is there to be worked on.
for (const n of users(0, 4)) await queue.add('processUserData', { userId: `bad-${n}` }, { attempts: n === 0 ? 2 : 1 });
for (const n of users(0, 3)) await queue.add('processUserData', { userId: `done-${n}` });
let ended = 0;
const worker = new Worker('user-data', async job => {
  if (job.data.userId.startsWith('bad')) throw new Error(`no data for ${job.data.userId}: über`);
  return { letters: 4 };
}, { connection });
await new Promise(resolve => {
  const count = () => { ended += 1; if (ended === 8) resolve(); }; // one of them fails twice
  worker.on('failed', count);
  worker.on('completed', count);
});
await worker.close();

for (const n of users(0, 40)) await queue.add('processUserData', { userId: `wait-${n}`, page: n, deep: { list: [1, null, 'zwölf'] } });
await queue.add('processUserData', { userId: 'own id' }, { jobId: 'user:own id'.replace(':', '-'), attempts: 5, backoff: { type: 'exponential', delay: 1000 } });
for (const n of users(0, 10)) await queue.add('processUserData', { userId: `later-${n}` }, { delay: 86_400_000 + n * 1000 });
for (const n of users(0, 6)) await queue.add('processUserData', { userId: `urgent-${n}` }, { priority: 1 + n % 3 });
await queue.add('processUserData', { userId: 'urgent-later' }, { priority: 2, delay: 86_400_000 });
await queue.add('sendEmail', { to: 'ada@example.org', userId: 'ada' });
await queue.add('processUserData', 'a bare string');

// A job that waits for its two children, which wait for a worker, in the same queue.
const flow = new FlowProducer({ connection });
await flow.add({
  name: 'sendEmail', queueName: 'user-data', data: { to: 'parent@example.org', userId: 'parent' },
  children: users(0, 2).map(n => ({ name: 'processUserData', queueName: 'user-data', data: { userId: `child-${n}` } })),
});
await flow.close();
// A schedule, as version 4 writes it or as those from 5.16 on do. Its next job is among the delayed ones.
const hourly = { pattern: '0 * * * *' };
if (queue.upsertJobScheduler) await queue.upsertJobScheduler('hourly', hourly, { name: 'processUserData', data: { userId: 'scheduled' } });
else await queue.add('processUserData', { userId: 'scheduled' }, { repeat: hourly });
if (process.env.PAUSED) await queue.pause();

const counts = await queue.getJobCounts('waiting', 'paused', 'delayed', 'prioritized', 'failed', 'completed', 'active');
console.log(JSON.stringify(['#', { bullmq: version, counts }]));
const redis = new Redis(address);
for (const key of (await redis.keys('*')).sort()) {
  const type = await redis.type(key);
  const ttl = await redis.pttl(key);
  if (type === 'string') print('SET', key, await redis.get(key));
  else if (type === 'list') print('RPUSH', key, ...await redis.lrange(key, 0, -1));
  else if (type === 'hash') print('HSET', key, ...Object.entries(await redis.hgetall(key)).flat());
  else if (type === 'set') print('SADD', key, ...await redis.smembers(key));
  else if (type === 'zset') {
    const flat = await redis.zrange(key, 0, -1, 'WITHSCORES');
    print('ZADD', key, ...flat.map((_, i) => flat[i % 2 ? i - 1 : i + 1]));
  } else if (type === 'stream') {
    for (const [id, fields] of await redis.xrange(key, '-', '+')) if (!key.endsWith(':events')) print('XADD', key, id, ...fields);
  }
  if (ttl > 0) print('PEXPIRE', key, String(ttl));
}
function print(...command) { console.log(JSON.stringify(command)); }
await redis.quit();
await queue.close();
