#!lua
-- add: one call of a producer puts any number of jobs (at most 128) into a partition.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 producers, 11.. dedup keys
-- ARGV  1 producer, 2 number of the call (from 1, rising), 3 keep ms: for how long the producer is remembered,
--       4 cursor to store, 5 most jobs the partition may hold (0: any), 6 '1': the number must follow the last one,
--       then per job: id, lane digit, delay ms (0: now), place of its dedup key in KEYS (0: none), envelope
-- Returns {'OK', now ms, '' or a result per job}   '' when every job is new; else per job 'n' new,
--                                                  'p' already present, or 'd' .. id of the dedup key's holder
--         {'REPEAT', now ms, last number, cursor, results of the last call}   nothing was written
--         {'GAP', now ms, last number, cursor}                                nothing was written
--         {'FULL', now ms, depth}                                             nothing was written
--
-- A call whose reply was lost is repeated with its number. It adds nothing, even when its jobs have ended by then.
-- No allow-oom: when memory is full Redis refuses the whole call before the first write.
local WIDTH, FIRST = 5, 7
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count = (#ARGV - FIRST + 1) / WIDTH
if count < 0 or count > 128 or count ~= math.floor(count) then
  return redis.error_reply('ERR add: ' .. #ARGV .. ' arguments are not 0 to 128 jobs')
end

local number = tonumber(ARGV[2])
local last, cursor, results = 0, '', ''
local known = redis.call('HGET', KEYS[10], ARGV[1])
if known then
  local kept, size, rest = string.match(known, '^(%d+)|%d+|(%d+)|(.*)$')
  last, cursor, results = tonumber(kept), string.sub(rest, 1, size), string.sub(rest, size + 1)
end
if number <= last then return {'REPEAT', now, last, cursor, results} end
if ARGV[6] == '1' and number ~= last + 1 then return {'GAP', now, last, cursor} end

local most = tonumber(ARGV[5])
if most > 0 then
  local depth = redis.call('HLEN', KEYS[9])
  if depth + count > most then return {'FULL', now, depth} end
end

-- Look: which ids are known, which dedup keys are held, and which of their holders live.
local places, holders, alive = {}, {}, {}
if count > 0 then
  local ids = {}
  for i = 1, count do ids[i] = ARGV[FIRST + (i - 1) * WIDTH] end
  places = redis.call('HMGET', KEYS[9], unpack(ids))
end
if #KEYS > 10 then
  holders = redis.call('MGET', unpack(KEYS, 11))
  local held = {}
  for i = 1, #holders do if holders[i] then held[#held + 1] = holders[i] end end
  if #held > 0 then
    local found = redis.call('HMGET', KEYS[9], unpack(held))
    for i = 1, #held do alive[held[i]] = found[i] end
  end
end

-- Decide and write, job by job.
local outcome, all_new = {}, true
local seen, index, locks, due, payloads = {}, {'HSET', KEYS[9]}, {'MSET'}, {'ZADD', KEYS[7]}, {'HSET', KEYS[8]}
local earliest
for i = 1, count do
  local at = FIRST + (i - 1) * WIDTH
  local id, digit, delay, lock = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local holder = lock > 0 and holders[lock - 10]
  if places[i] or seen[id] then
    outcome[i], all_new = 'p', false
  elseif holder and (alive[holder] or redis.call('PTTL', KEYS[lock]) > 0) then -- with a TTL: the window after its end
    outcome[i], all_new = 'd' .. holder, false
  else
    outcome[i], seen[id] = 'n', true
    if lock > 0 then
      locks[#locks + 1], locks[#locks + 2] = KEYS[lock], id
      holders[lock - 10], alive[id] = id, true
    end
    local place
    if delay == '0' then
      place = digit .. redis.call('XADD', KEYS[tonumber(digit)], '*', 'j', id, 'd', ARGV[at + 4])
    else
      local when = now + tonumber(delay)
      if not earliest or when < earliest then earliest = when end
      due[#due + 1], due[#due + 2] = when, id
      payloads[#payloads + 1], payloads[#payloads + 2] = id, digit .. '|' .. now .. '|' .. ARGV[at + 4]
      place = 'z'
    end
    index[#index + 1], index[#index + 2] = id, place
  end
end
if #index > 2 then redis.call(unpack(index)) end
if #locks > 1 then redis.call(unpack(locks)) end
if #due > 2 then
  local next_due = redis.call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES')[2]
  redis.call(unpack(payloads))
  redis.call(unpack(due))
  -- A blocked worker sleeps until the due time that it knows; tell one that there is an earlier one.
  if not next_due or earliest < tonumber(next_due) then redis.call('XADD', KEYS[1], '*', 'w', '1') end
end
local reply = all_new and '' or table.concat(outcome, '\n')
local keep_until = now + tonumber(ARGV[3])
redis.call('HSET', KEYS[10], ARGV[1], string.format('%d|%.0f|%d|', number, keep_until, #ARGV[4]) .. ARGV[4] .. reply)

-- Each new producer forgets a few that have not been seen for long.
if not known then
  local some = redis.call('HRANDFIELD', KEYS[10], 8, 'WITHVALUES')
  for i = 1, #some, 2 do
    if tonumber(string.match(some[i + 1], '^%d+|(%d+)|')) < now then redis.call('HDEL', KEYS[10], some[i]) end
  end
end
return {'OK', now, reply}
