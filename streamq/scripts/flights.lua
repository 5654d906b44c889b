#!lua flags=no-writes,allow-oom
-- flights: deliveries that are not settled, without their envelopes. Reads only.
--
-- KEYS  1-6 lanes
-- ARGV  1 the most to list per lane, 2 least time since delivery or renewal ms, 3-8 per lane the entry id to start at
-- Returns {now ms, {per lane: {entry id, consumer, ms since delivery or renewal, deliveries}..}}
local time = redis.call('TIME')
local lanes = {}
for lane = 1, 6 do
  local rows = redis.pcall('XPENDING', KEYS[lane], 'g', 'IDLE', ARGV[2], ARGV[lane + 2], '+', ARGV[1])
  lanes[lane] = rows.err and {} or rows
end
return {time[1] * 1000 + math.floor(time[2] / 1000), lanes}
