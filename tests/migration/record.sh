#!/usr/bin/env bash
# Makes the recordings beside this file from BullMQ 4, 5 and the latest, as npm has them. Needs node 18, npm, redis-server
# and redis-cli. The tests replay what is committed here, so they need none of these.
#
#   tests/migration/record.sh [FOLDER]    where to write; beside this file unless given
set -eu
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-$here}
work=$(mktemp -d)
port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
trap 'redis-cli -p "$port" shutdown nosave >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
for version in 4 5 latest; do
    mkdir "$work/$version"
    (cd "$work/$version" && npm init -y >/dev/null && npm install --no-audit --no-fund --silent "bullmq@$version" ioredis@5)
    for paused in "" yes; do
        redis-server --bind 127.0.0.1 --port "$port" --save "" --dir "$work" --daemonize yes >/dev/null
        until redis-cli -p "$port" ping >/dev/null 2>&1; do sleep 0.1; done
        name="bullmq-$version${paused:+-paused}.ndjson"
        PAUSED=$paused node "$here/record.mjs" "$work/$version" "redis://127.0.0.1:$port" >"$into/$name"
        redis-cli -p "$port" shutdown nosave || true
        while redis-cli -p "$port" ping >/dev/null 2>&1; do sleep 0.1; done
        echo "$name: $(head -n 1 "$into/$name")"
    done
done
