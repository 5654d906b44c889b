#!lua flags=allow-oom
-- lineage: who has written here, and since when it is that server.
--
-- KEYS  1 lineage
-- ARGV  1 the server's replication id
-- Returns the ms from which on all that happened is known here; 0: nothing was ever forgotten
--
-- Another id than the last one is a replica that took over, or a server that was started anew. Whatever was enqueued
-- before somebody noticed may have ended without it.
local written = redis.call('GET', KEYS[1]) or ''
local known, since = string.match(written, '^(%x+)|(%d+)$')
if known == ARGV[1] then return tonumber(since) end
local from = '0'
if known then
  local time = redis.call('TIME')
  from = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + 1)
end
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. from)
return tonumber(from)
