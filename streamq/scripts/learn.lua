#!lua
-- learn: what a worker saw of run times since it last said so. The lanes go by it.
--
-- KEYS  1 cost, 2 times
-- ARGV  1 limit ms from which a run is slow ('': not known), 2 bin of the hint from which jobs are slow ('': not known),
--       3 most keys to keep,
--       then sections, each a number of rows and the rows (at most 128 a section):
--         counts  field of times, how many more
--         runs    field of cost, ms that a run of it took
-- Returns every field of times and its value, flat. Without rows nothing is written
--
-- cost holds slow keys only: handler .. '|' .. key to mean ms .. '|' .. ms when it last ran. A key that has become fast
-- leaves, and so does one that has not run for long. times holds counts by bin (t: run times; f, s: hints of jobs that
-- were fast and slow), `limit`, `cut`, and `since`: when the counts were last halved.
local COST, TIMES = KEYS[1], KEYS[2]
local HALF_LIFE_MS, FORGET_MS, BATCH = 6 * 3600000, 30 * 86400000, 128
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit, most = tonumber(ARGV[1]), tonumber(ARGV[3])

-- Check that the sections add up.
local counts, counts_at = tonumber(ARGV[4]), 5
local runs, runs_at = counts and tonumber(ARGV[counts_at + 2 * counts]), counts and counts_at + 2 * counts + 1
if not runs or counts > BATCH or runs > BATCH or runs_at + 2 * runs ~= #ARGV + 1 then
  return redis.error_reply('ERR learn: the sections of ' .. #ARGV .. ' arguments do not add up')
end
if counts == 0 and runs == 0 then return call('HGETALL', TIMES) end

local function mean_of(value) return value and tonumber(string.match(value, '^[%d%.]+')) end
local function seen_of(value) return tonumber(string.match(value, '|(%d+)$')) end
-- A little below the limit is still slow, so that a key at the limit does not swing.
local function is_fast(mean) return not limit or mean < limit * 2 / 3 end

local since = tonumber(call('HGET', TIMES, 'since') or nil)
if not since then
  call('HSET', TIMES, 'since', string.format('%.0f', now))
elseif now - since > HALF_LIFE_MS then
  local share = 0.5 ^ math.floor((now - since) / HALF_LIFE_MS)
  local all = call('HGETALL', TIMES)
  for i = 1, #all, 2 do
    if string.find(all[i], '^[tfs]%d+$') then
      local left = math.floor(all[i + 1] * share)
      if left > 0 then call('HSET', TIMES, all[i], left) else call('HDEL', TIMES, all[i]) end
    end
  end
  call('HSET', TIMES, 'since', string.format('%.0f', now))
end
for at = counts_at, runs_at - 2, 2 do
  call('HINCRBY', TIMES, ARGV[at], ARGV[at + 1])
end
for field, value in pairs({limit = ARGV[1], cut = ARGV[2]}) do
  if value ~= '' then call('HSET', TIMES, field, value) else call('HDEL', TIMES, field) end
end

-- Smooth in the logarithm: one run that was off by much moves a mean no more than two steps.
for at = runs_at, #ARGV, 2 do
  local field, ms = ARGV[at], math.max(1, tonumber(ARGV[at + 1]))
  local mean = mean_of(call('HGET', COST, field))
  if mean or (limit and ms >= limit) then
    mean = mean and math.sqrt(mean * ms) or ms
    if is_fast(mean) then
      call('HDEL', COST, field)
    else
      call('HSET', COST, field, string.format('%.0f|%.0f', mean, now))
    end
  end
end

-- Who brings new ones looks at a few others: those that are forgotten, and the smallest of them when there are too many.
if runs > 0 and call('EXISTS', COST) == 1 then
  local some = call('HRANDFIELD', COST, 8, 'WITHVALUES')
  local smallest, least
  for i = 1, #some, 2 do
    local mean = mean_of(some[i + 1])
    if now - seen_of(some[i + 1]) > FORGET_MS or is_fast(mean) then
      call('HDEL', COST, some[i])
    elseif not least or mean < least then
      smallest, least = some[i], mean
    end
  end
  if smallest and call('HLEN', COST) > most then call('HDEL', COST, smallest) end
end
return call('HGETALL', TIMES)
