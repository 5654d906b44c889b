#!lua flags=allow-oom
-- beat: says that workers live, without anything else.
--
-- KEYS  1 workers
-- ARGV  consumers
-- Returns {now ms, {consumers that were given up and must stop}}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local fenced = {}
for i = 1, #ARGV do
  local beat = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if beat and tonumber(beat) > 0 then
    redis.call('ZADD', KEYS[1], 'XX', now, ARGV[i])
  else
    fenced[#fenced + 1] = ARGV[i]
  end
end
return {now, fenced}
