#!lua flags=allow-oom
-- bury: somebody saw these workers die; what they held is free to take now.
--
-- KEYS  1 lane that wakes a reader, 2 workers
-- ARGV  consumers
-- Returns the number of workers that were still on the books
local buried = 0
for i = 1, #ARGV do
  local beat = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if beat then
    redis.call('ZADD', KEYS[2], 'XX', 0, ARGV[i])
    buried = buried + 1
  end
end
if buried > 0 then redis.call('XADD', KEYS[1], '*', 'w', '1') end
return buried
