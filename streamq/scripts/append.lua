#!lua
-- append: one call of a producer puts a single plain job into a lane: for now, without dedup key, hint or gates.
--
-- KEYS  1 lane, 2 index, 3 producers, 4 counts, 5.. cost (if the job has a key)
-- ARGV  1 producer, 2 number of the call, 3 keep ms, 4 digit of the lane, 5 id, 6 envelope, 7.. field in cost (if it has a key)
-- Returns now ms, or 0: nothing was written, and add.lua knows what it comes to
--
-- All that is not said here is as in add.lua, which this is the short way of: fewer words to send, read and unpack.
local call = redis.call
local number, known = ARGV[2], call('HGET', KEYS[3], ARGV[1])
if not known or tonumber(number) <= tonumber(string.match(known, '^%d+')) or call('HEXISTS', KEYS[2], ARGV[5]) == 1
  or KEYS[5] and call('HEXISTS', KEYS[5], ARGV[7]) == 1 then return 0 end

-- A small hash is a list that is searched from end to end, unless it ever held a value of more than 64 bytes.
local size = string.sub(number, -1) == '0' and call('HLEN', KEYS[2]) or 0
local is_list = size > 8 and size <= 512
if is_list then call('HSET', KEYS[2], '', string.rep(' ', 65)) end
local place = call('XADD', KEYS[1], '*', 'j', ARGV[5], 'd', ARGV[6])
local now = tonumber(string.match(place, '^%d+'))
call('HSET', KEYS[2], ARGV[5], ARGV[4] .. place)
if is_list then call('HDEL', KEYS[2], '') end
call('HINCRBY', KEYS[4], 'enqueued', 1)
call('HSET', KEYS[3], ARGV[1], number .. '|' .. now + ARGV[3] .. '|0|')
return now
