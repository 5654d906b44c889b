#!lua flags=allow-oom
-- register: a worker joins a partition.
--
-- KEYS  1-6 lanes, 7 outbox, 8 workers, 9 control
-- ARGV  1 consumer
-- Returns {'OK', now ms, id of the newest control entry}
--         {'TAKEN', now ms}  the name is in use or was given up; names are never used twice
--
-- Groups start at 0: what was enqueued before the first worker is delivered.
local function ensure_group(stream, group)
  local made = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if redis.call('ZSCORE', KEYS[8], ARGV[1]) then return {'TAKEN', now} end

for lane = 1, 6 do
  local failed = ensure_group(KEYS[lane], 'g')
  if failed then return failed end
end
local failed = ensure_group(KEYS[7], 'rec')
if failed then return failed end

redis.call('ZADD', KEYS[8], now, ARGV[1])
local newest = redis.call('XREVRANGE', KEYS[9], '+', '-', 'COUNT', 1)[1]
return {'OK', now, newest and newest[1] or '0-0'}
