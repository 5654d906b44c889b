#!/usr/bin/env bash
# Makes the recordings beside this file from BullMQ 4, 5 and the latest, as npm has them. Needs node 18, npm and
# redis-server. The tests replay what is committed here, so they need none of these.
#
#   tests/migration/record.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 4 5 latest; do
    mkdir "$work/$version"
    (cd "$work/$version" && npm init -y >/dev/null && npm install --no-audit --no-fund --silent "bullmq@$version" ioredis@5)
    for paused in "" yes; do
        redis-server --port 7311 --save "" --dir "$work" --daemonize yes --pidfile "$work/redis.pid" >/dev/null
        until redis-cli -p 7311 ping >/dev/null 2>&1; do sleep 0.1; done
        name="bullmq-$version${paused:+-paused}.ndjson"
        PAUSED=$paused node "$here/record.mjs" "$work/$version" 7311 >"$here/$name"
        redis-cli -p 7311 shutdown nosave || true
        echo "$name: $(head -n 1 "$here/$name")"
    done
done
