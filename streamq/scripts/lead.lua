#!lua
-- lead: take, keep or give back a lock that only saves work.
--
-- KEYS  1 lock
-- ARGV  1 who asks, 2 for how long in ms (0: give it back)
-- Returns 1 when it was free or held by who asks, else 0
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
