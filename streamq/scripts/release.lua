#!lua flags=allow-oom
-- release: a worker hands deliveries back that it will not run. No attempt and no crash is counted.
--
-- KEYS  1-6 lanes, 7 index, 8 workers
-- ARGV  1 consumer, then pairs: token, job id (at most 128)
-- Returns the number handed back; a delivery that is no longer this worker's is left alone
local HANDBACK = '@handback'
local beat = redis.call('ZSCORE', KEYS[8], ARGV[1])
if not beat or tonumber(beat) <= 0 then return 0 end
if #ARGV < 3 then return 0 end

local ids = {}
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local tokens = redis.call('HMGET', KEYS[7], unpack(ids))

local released = 0
local entries = {{}, {}, {}, {}, {}, {}}
for i = 1, #ids do
  local token = ARGV[2 * i]
  if tokens[i] == token then
    local lane = entries[tonumber(string.sub(token, 1, 1))]
    lane[#lane + 1] = string.match(token, '^%d([%d%-]+)')
    released = released + 1
  end
end
if released == 0 then return 0 end

redis.call('ZADD', KEYS[8], 0, HANDBACK)
for lane = 1, 6 do
  if #entries[lane] > 0 then
    local claim = {'XCLAIM', KEYS[lane], 'g', HANDBACK, 0}
    for _, entry in ipairs(entries[lane]) do claim[#claim + 1] = entry end
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
  end
end
redis.call('XADD', KEYS[1], '*', 'w', '1')
return released
