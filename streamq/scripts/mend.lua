#!lua flags=allow-oom
-- mend: jobs of which the index says where they are, and that can never run from there.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 gates, 11 places
-- ARGV  1 whether to mend them ('1') or only to look, then job ids (at most 128)
-- Returns {ids of those that lie nowhere: they leave the index,
--          ids of those kept behind a job that does not live any more, or said to wait at a gate where they are not:
--          they are due now}
local lost, stranded, gone = {}, {}, {'HDEL', KEYS[9]}
if #ARGV < 2 then return {lost, stranded} end
local tokens = redis.call('HMGET', KEYS[9], unpack(ARGV, 2))
for i = 2, #ARGV do
  local id, token, is_there = ARGV[i], tokens[i - 1], true
  local ahead = token and string.match(token, '^z>(.*)$')
  if token and string.sub(token, 1, 1) == 'z' then
    is_there = redis.call('HEXISTS', KEYS[8], id) == 1
  elseif token then
    local entry = string.match(token, '^%d([%d%-]+)')
    is_there = #redis.call('XRANGE', KEYS[tonumber(string.sub(token, 1, 1))], entry, entry) > 0
  end
  if not is_there then
    lost[#lost + 1] = id
    gone[#gone + 1] = id
  elseif ahead and redis.call('HEXISTS', KEYS[9], ahead) == 0
    or token and string.sub(token, 1, 2) == 'z=' and not redis.call('ZSCORE', KEYS[10], string.sub(token, 3)) then
    stranded[#stranded + 1] = id
  end
end
if ARGV[1] == '1' then
  for _, id in ipairs(stranded) do
    redis.call('HSET', KEYS[9], id, 'z')
    redis.call('ZADD', KEYS[7], 0, id)
  end
  if #lost > 0 then
    redis.call('ZREM', KEYS[7], unpack(lost))
    redis.call('HDEL', KEYS[11], unpack(lost))
    redis.call(unpack(gone))
  end
end
return {lost, stranded}
