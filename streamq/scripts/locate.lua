#!lua flags=no-writes,allow-oom
-- locate: where jobs are now. Reads only.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 gates, 11 places
-- ARGV  job ids (at most 128)
-- Returns per job  {}                                                            not live
--                  {0, due ms, payload}                                          delayed or retrying
--                  {0, '', payload, gate, how many are before it, since ms or ''}  it waits at a gate
--                  {digit, entry id, fields, consumer or '', ms since delivery}  in a lane
local found = {}
if #ARGV == 0 then return found end
local tokens = redis.call('HMGET', KEYS[9], unpack(ARGV))
for i = 1, #ARGV do
  local token = tokens[i]
  found[i] = {}
  if token and string.sub(token, 1, 2) == 'z=' then
    local mine = string.sub(token, 3)
    local gate = string.sub(mine, 1, string.find(mine, '\0', 1, true) - 1)
    local before = redis.call('ZLEXCOUNT', KEYS[10], '[' .. gate .. '\0p', '(' .. mine)
    local since = string.match(redis.call('HGET', KEYS[11], ARGV[i]) or '', ' @(%d+)')
    found[i] = {0, '', redis.call('HGET', KEYS[8], ARGV[i]) or '', gate, before, since or ''}
  elseif token and string.sub(token, 1, 1) == 'z' then
    local due = redis.call('ZSCORE', KEYS[7], ARGV[i]) or '0'
    found[i] = {0, due, redis.call('HGET', KEYS[8], ARGV[i]) or ''}
  elseif token then
    local lane, place = tonumber(string.sub(token, 1, 1)), string.match(token, '^%d([%d%-]+)')
    local entry = redis.call('XRANGE', KEYS[lane], place, place)[1]
    local held = redis.pcall('XPENDING', KEYS[lane], 'g', place, place, 1)
    local row = not held.err and held[1]
    if entry then found[i] = {lane, place, entry[2], row and row[2] or '', row and row[3] or 0} end
  end
end
return found
