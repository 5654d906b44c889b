#!lua flags=allow-oom
-- block: stop a queue, the jobs of a handler, or those of one user key; or let them go again.
--
-- KEYS  1 lane that wakes a reader, 2 pause, 3 control
-- ARGV  1 what: `queue`, `h:` and a handler, or `k:` and a user key, 2 until when, server ms (0: open; 1: lift it now),
--       3 why, as JSON
-- Returns 'OK'
--         'NONE'  there is nothing to lift, or it is being lifted
--         'FULL'  so many blocks at once are not allowed; nothing was written
--
-- Jobs that met the block lie in `delayed` under its number; the cycles put them back when it is over. A block that is
-- lifted therefore stays until its last job has gone back, and its number is not given to another one before.
local MOST = 128
local what, till = ARGV[1], ARGV[2]
local known = redis.call('HGET', KEYS[2], what)
if till == '1' then
  if not known or string.sub(known, 1, 2) == '1|' then return 'NONE' end
  local number, why = string.match(known, '^%d+|(%d+)|(.*)$')
  if what == 'queue' or not number then
    redis.call('HDEL', KEYS[2], what)
  else
    redis.call('HSET', KEYS[2], what, '1|' .. number .. '|' .. why)
  end
elseif what == 'queue' then
  redis.call('HSET', KEYS[2], what, till .. '|' .. ARGV[3])
else
  local number = known and string.match(known, '^%d+|(%d+)|')
  if not number then
    local taken, rules = {}, redis.call('HGETALL', KEYS[2])
    for i = 2, #rules, 2 do taken[tonumber(string.match(rules[i], '^%d+|(%d+)|')) or 0] = true end
    number = 1
    while taken[number] do number = number + 1 end
    if number > MOST then return 'FULL' end
  end
  redis.call('HSET', KEYS[2], what, till .. '|' .. number .. '|' .. ARGV[3])
end
-- One waits for jobs, another for the end of a pause.
redis.call('XADD', KEYS[1], '*', 'w', '1')
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'do', 'look', 'to', '*')
return 'OK'
