#!lua flags=allow-oom
-- leave: a worker ends. What it still holds is handed back, then its name goes.
--
-- KEYS  1-6 lanes, 7 workers
-- ARGV  1 consumer, 2 the most deliveries to hand back per lane in this call (at most 128)
-- Returns 1 when the worker is gone from the books, 0 when it holds more: call again
local HANDBACK = '@handback'
local handed, more = 0, false
for lane = 1, 6 do
  local held = redis.pcall('XPENDING', KEYS[lane], 'g', '-', '+', ARGV[2], ARGV[1])
  if held.err then
    if not string.find(held.err, 'NOGROUP', 1, true) then return held end
  elseif #held > 0 then
    local claim = {'XCLAIM', KEYS[lane], 'g', HANDBACK, 0}
    for _, entry in ipairs(held) do claim[#claim + 1] = entry[1] end
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
    handed = handed + #held
    more = more or #held >= tonumber(ARGV[2])
  end
end
if handed > 0 then
  redis.call('ZADD', KEYS[7], 0, HANDBACK)
  redis.call('XADD', KEYS[1], '*', 'w', '1')
end
if more then return 0 end
for lane = 1, 6 do redis.pcall('XGROUP', 'DELCONSUMER', KEYS[lane], 'g', ARGV[1]) end
redis.call('ZREM', KEYS[7], ARGV[1])
return 1
