#!lua
-- append: one call of a producer puts a single plain job into a lane: for now, without dedup key, hint or gates.
--
-- KEYS  1 lane, 2 index, 3 producers, 4 counts, 5.. cost (if the job has a key)
-- ARGV  1 producer, 2 what is kept of it, 3 what is kept of it from now on, 4 digit of the lane, 5 id, 6 envelope,
--       7.. field in cost (if it has a key)
-- Returns 1, or 0: nothing was added, and add.lua knows what it comes to
--
-- All that is not said here is as in add.lua, which this is the short way of: fewer words to send, read and unpack. It
-- reads and writes no number, since each costs as much as a small command. What is kept has the number of the last call,
-- so this one comes after it and was not made before; until when it is kept is what add.lua said.
local call = redis.call
if call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] or call('HEXISTS', KEYS[2], ARGV[5]) == 1
  or KEYS[5] and call('HEXISTS', KEYS[5], ARGV[7]) == 1 then return 0 end

local place = call('XADD', KEYS[1], '*', 'j', ARGV[5], 'd', ARGV[6])
call('HSET', KEYS[2], ARGV[5], ARGV[4] .. place)
call('HINCRBY', KEYS[4], 'enqueued', '1')
call('HSET', KEYS[3], ARGV[1], ARGV[3])
return 1
