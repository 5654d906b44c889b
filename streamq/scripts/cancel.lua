#!lua flags=allow-oom
-- cancel: a job that waits ends as cancelled at once; a job that runs is told to stop by its worker.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 outbox, 11 control, 12 its result stream,
--       13 gates, 14 places, 15 openings, then, if the job has one, 16 its dedup key
-- ARGV  1 job id, 2 the token that was seen, 3 record, 4 outbox_max (0: no outbox), 5 reason,
--       6 for how long ms its result is kept (0: nobody waits for it)
-- Returns 'CANCELLED'  it waited, and has ended
--         'ASKED'      it runs; its worker has been told. One that was handed back runs nowhere: it waits
--         'GONE'       no living job has this id
--         'MOVED'      it is not where it was seen: look again
local id, seen = ARGV[1], ARGV[2]
local token = redis.call('HGET', KEYS[9], id)
if not token then return 'GONE' end
if token ~= seen then return 'MOVED' end

if string.sub(token, 1, 1) ~= 'z' then
  local lane = KEYS[tonumber(string.sub(token, 1, 1))]
  local entry = string.match(token, '^%d([%d%-]+)')
  local held = redis.pcall('XPENDING', lane, 'g', entry, entry, 1)
  if held.err and not string.find(held.err, 'NOGROUP', 1, true) then return held end
  local holder = not held.err and held[1] and held[1][2]
  if holder and holder ~= '@handback' then
    redis.call('XADD', KEYS[11], 'MAXLEN', '~', 1000, '*', 'do', 'cancel', 'job', id, 'why', ARGV[5])
    redis.call('XADD', KEYS[1], '*', 'w', '1')
    return 'ASKED'
  end
  if holder then redis.call('XACK', lane, 'g', entry) end
  redis.call('XDEL', lane, entry)
else
  redis.call('ZREM', KEYS[7], id)
  redis.call('HDEL', KEYS[8], id)
end
redis.call('HDEL', KEYS[9], id)
local gates = redis.call('HGET', KEYS[14], id)
if gates then
  -- Its places are free, and whoever waited behind it may be the first now: the next cycle looks.
  local time = redis.call('TIME')
  if string.sub(token, 1, 2) == 'z=' then redis.call('ZREM', KEYS[13], string.sub(token, 3)) end
  for name in string.gmatch(gates, '=(%S+)') do
    redis.call('ZREM', KEYS[13], name .. '\0h' .. id)
    redis.call('ZADD', KEYS[15], time[1] * 1000000 + time[2], 'w' .. name)
  end
  redis.call('HDEL', KEYS[14], id)
  redis.call('XADD', KEYS[1], '*', 'w', '1')
end
if tonumber(ARGV[4]) > 0 then
  redis.call('XADD', KEYS[10], 'MAXLEN', '~', ARGV[4], '*', 'w', 'operator', id, ARGV[3])
end
if tonumber(ARGV[6]) > 0 then
  redis.call('XADD', KEYS[12], '*', 'r', ARGV[3])
  redis.call('PEXPIRE', KEYS[12], ARGV[6])
end
local holder = KEYS[16] and redis.call('GET', KEYS[16])
local before = string.match(token, '^z>(.*)$')
if holder == id and before and redis.call('HEXISTS', KEYS[9], before) == 1 then
  redis.call('SET', KEYS[16], before) -- it was kept behind that one, which has the key again
elseif holder == id then
  redis.call('DEL', KEYS[16])
elseif holder and redis.call('HGET', KEYS[9], holder) == 'z>' .. id then
  local seconds = redis.call('TIME')[1]
  redis.call('HSET', KEYS[9], holder, 'z')
  redis.call('ZADD', KEYS[7], seconds * 1000, holder)
  redis.call('XADD', KEYS[1], '*', 'w', '1')
end
return 'CANCELLED'
