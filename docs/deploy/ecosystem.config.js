// pm2 start ecosystem.config.js; pm2 scale worker 5; pm2 logs worker
// streamq reads .env in this directory by itself. PM2 stops with SIGINT, which drains; kill_timeout must be longer than
// STREAMQ_GRACE_MS, the time that running jobs get, which is 25 s unless set.
const instances = Number(process.env.WORKER_INSTANCES || 2);
const role = (name, args, more = {}) => ({
  name,
  script: ".venv/bin/streamq",
  args: `${args} shop:app`,
  interpreter: "none",
  exec_mode: "fork",
  kill_timeout: 60000,
  restart_delay: 2000,
  stop_exit_codes: [2, 78],
  ...more,
});

module.exports = {
  apps: [
    role("worker", "worker --no-parent", { instances }),
    role("cron", "cron"),
    role("recorder", "recorder"),
    role("api", "api"),
  ],
};
