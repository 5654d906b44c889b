#!lua flags=allow-oom
-- strays: after a lost reply, hand back the deliveries that Redis gave to this worker and that never reached it.
--
-- KEYS  1-6 lanes, 7 workers
-- ARGV  1 consumer, 2 the most deliveries to look at per lane, then the tokens that the worker does hold
-- Returns {number handed back, 1 when a lane holds more than was looked at}
local HANDBACK = '@handback'
local beat = redis.call('ZSCORE', KEYS[7], ARGV[1])
if not beat or tonumber(beat) <= 0 then return {0, 0} end

local held = {}
for i = 3, #ARGV do held[string.match(ARGV[i], '^[%d%-]+')] = true end

local handed, more = 0, 0
for lane = 1, 6 do
  local pending = redis.call('XPENDING', KEYS[lane], 'g', '-', '+', ARGV[2], ARGV[1])
  local claim = {'XCLAIM', KEYS[lane], 'g', HANDBACK, 0}
  for _, entry in ipairs(pending) do
    if not held[lane .. entry[1]] then claim[#claim + 1] = entry[1] end
  end
  if #claim > 5 then
    handed = handed + #claim - 5
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
  end
  if #pending >= tonumber(ARGV[2]) then more = 1 end
end
if handed > 0 then
  redis.call('ZADD', KEYS[7], 0, HANDBACK)
  redis.call('XADD', KEYS[1], '*', 'w', '1')
end
return {handed, more}
