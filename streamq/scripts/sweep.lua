#!lua flags=allow-oom
-- sweep: the third net. Deliveries that nobody renewed within the lease are handed back, whoever holds them.
--
-- KEYS  1 the lane to sweep, 2 index, 3 workers, 4 the lane that wakes a reader
-- ARGV  1 digit of the lane, 2 lease ms, 3 cursor (0-0 starts anew), 4 the most to look at (at most 128)
-- Returns {next cursor, number handed back, ids of entries that were pending but no longer exist}
--
-- A swept job gets a new token at once, so that a late outcome of its old holder is refused.
local HANDBACK = '@handback'
local swept = redis.call('XAUTOCLAIM', KEYS[1], 'g', HANDBACK, ARGV[2], ARGV[3], 'COUNT', ARGV[4])
local handed = 0
for _, entry in ipairs(swept[2]) do
  local place = ARGV[1] .. entry[1]
  local id = entry[2][1] == 'j' and entry[2][2]
  local token = id and redis.call('HGET', KEYS[2], id)
  if token and (token == place or string.sub(token, 1, #place + 1) == place .. '*') then
    local delivery, crashes = string.match(token, '%*(%d+)%*(%d+)$')
    redis.call('HSET', KEYS[2], id, place .. '*' .. ((tonumber(delivery) or 1) + 1) .. '*' .. (crashes or '0'))
    handed = handed + 1
  else
    redis.call('XACK', KEYS[1], 'g', entry[1])
    redis.call('XDEL', KEYS[1], entry[1])
  end
end
if handed > 0 then
  redis.call('ZADD', KEYS[3], 0, HANDBACK)
  redis.call('XADD', KEYS[4], '*', 'w', '1')
end
return {swept[1], handed, swept[3] or {}}
