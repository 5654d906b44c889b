#!lua flags=allow-oom
-- renew: keeps every delivery of a worker whose event loop is busy, for as long as somebody vouches for its process.
--
-- KEYS  1-6 lanes, 7 workers
-- ARGV  1 consumer, 2 the most deliveries per lane (at most 1000)
-- Returns the number renewed; 0 when the worker was given up
local beat = redis.call('ZSCORE', KEYS[7], ARGV[1])
if not beat or tonumber(beat) <= 0 then return 0 end
local renewed = 0
for lane = 1, 6 do
  local pending = redis.call('XPENDING', KEYS[lane], 'g', '-', '+', ARGV[2], ARGV[1])
  if #pending > 0 then
    local claim = {'XCLAIM', KEYS[lane], 'g', ARGV[1], 0}
    for _, entry in ipairs(pending) do claim[#claim + 1] = entry[1] end
    claim[#claim + 1] = 'JUSTID'
    redis.call(unpack(claim))
    renewed = renewed + #pending
  end
end
return renewed
