#!lua flags=no-writes,allow-oom
-- view: what a partition holds now. Reads only.
--
-- KEYS  1-6 lanes, 7 delayed, 8 index, 9 outbox, 10 workers, 11 dead, 12 pause, 13 counts, 14 payload
-- ARGV  1 the most workers to list
-- Returns {now ms, delayed, next due ms or '', jobs in the index, outbox length, dead letters, {what is stopped, why, ..},
--          {consumer, last beat ms, ..}, {per lane: length, {consumer, deliveries held, ..}, oldest waiting entry or ''},
--          oldest outbox entry or '', jobs that wait for a block, {what is counted, number, ..},
--          longest time in ms since one of the 32 oldest deliveries of a lane was renewed, jobs that wait at gates}
local GROUP, BLOCKED = 'g', 2 ^ 48 -- as in cycle.lua
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The id of the last entry that any worker read; nothing was read when there is no group yet.
local function last_read(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return '0-0' end
  for _, group in ipairs(groups) do
    local fields = {}
    for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
    if fields['name'] == GROUP then return fields['last-delivered-id'] end
  end
  return '0-0'
end

local lanes = {}
for lane = 1, 6 do
  local held, pending = {}, redis.pcall('XPENDING', KEYS[lane], GROUP)
  for _, row in ipairs(not pending.err and pending[4] or {}) do
    held[#held + 1] = row[1]
    held[#held + 1] = tonumber(row[2])
  end
  local oldest = redis.call('XRANGE', KEYS[lane], '(' .. last_read(KEYS[lane]), '+', 'COUNT', 1)[1]
  lanes[#lanes + 1] = redis.call('XLEN', KEYS[lane])
  lanes[#lanes + 1] = held
  lanes[#lanes + 1] = oldest and oldest[1] or ''
end
local idle = 0
for lane = 1, 6 do
  local oldest = redis.pcall('XPENDING', KEYS[lane], GROUP, '-', '+', 32)
  for _, row in ipairs(oldest.err and {} or oldest) do idle = math.max(idle, row[3]) end
end
local unrecorded = redis.call('XRANGE', KEYS[9], '-', '+', 'COUNT', 1)[1]
local blocked = redis.call('ZCOUNT', KEYS[7], string.format('%.0f', BLOCKED), '+inf')
local due = redis.call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES')[2]
if due and tonumber(due) >= BLOCKED then due = nil end
return {
  now, redis.call('ZCARD', KEYS[7]) - blocked, due or '', redis.call('HLEN', KEYS[8]), redis.call('XLEN', KEYS[9]),
  redis.call('XLEN', KEYS[11]), redis.call('HGETALL', KEYS[12]),
  redis.call('ZRANGE', KEYS[10], 0, tonumber(ARGV[1]) - 1, 'WITHSCORES'), lanes,
  unrecorded and unrecorded[1] or '', blocked, redis.call('HGETALL', KEYS[13]), idle,
  math.max(0, redis.call('HLEN', KEYS[14]) - redis.call('ZCARD', KEYS[7])), -- what has a payload and no time
}
