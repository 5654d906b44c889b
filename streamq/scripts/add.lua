#!lua
-- add: one call of a producer puts any number of jobs (at most 128) into a partition.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 producers, 11 counts, 12 cost, 13 times, 14 gates, 15 places,
--       16 fair, 17.. dedup keys
-- ARGV  1 producer, 2 number of the call (from 1, rising), 3 keep ms: for how long the producer is remembered,
--       4 cursor to store, 5 most jobs the partition may hold (0: any), 6 '1': the number must follow the last one,
--       then per job: id, lane digit, delay ms (0: now; with '@' before it the due time in ms itself),
--       place of its dedup key in KEYS (0: none) and behind it the scope, envelope, whose: '' or the bin of its cost
--       hint as a character ('-': none) and its field in cost ('': it has no key)
-- Returns {'OK', now ms, '' or a result per job}   '' when every job is new; else per job 'n' new,
--                                                  'p' already present, 'd' .. id of the dedup key's holder,
--                                                  or 'r' .. id of the waiting job that got these arguments
--         {'REPEAT', now ms, last number, cursor, results of the last call}   nothing was written
--         {'GAP', now ms, last number, cursor}                                nothing was written
--         {'FULL', now ms, depth}                                             nothing was written
--
-- Scopes, each of the call that comes: whether the holder of its dedup key stands in for it.
--   (none)   until done: while the holder lives
--   s        until started: while it lives and no worker has it
--   t<ms>    throttle: for so long from its acceptance, whether it lives or not
--   p<ms>    period: until the server's time is next a multiple of this
--   d<ms>    debounce: while it is debounced (z~) it gets these arguments and a new due time, at most so long after
--            it was first enqueued; else the key goes to the new job
--   k        keep last: while a worker has it, or it waits for a retry, the new job is kept behind it (z>holder) and
--            gets the arguments of those that follow
--
-- A call whose reply was lost is repeated with its number. It adds nothing, even when its jobs have ended by then.
-- A key that is known as slow goes into the slow lane; of others the hint decides, by the measured cut if there is one,
-- else as the lane digit says. The slow ones of a call go in longest first.
-- A job of a fair queue waits at the gate of its key at once; what that means stands in cycle.lua.
-- No allow-oom: when memory is full Redis refuses the whole call before the first write.
local RESTING = 2 ^ 44
local KEPT_TILL = 253370764800000 -- 9999-01-01: whoever ends before it sets the time
local WIDTH, FIRST, FIXED = 6, 7, 16
local call = redis.call
local number, known = tonumber(ARGV[2]), call('HGET', KEYS[10], ARGV[1])

-- A single job for now without dedup key, hint and turn, while nobody is known as slow: all that follows comes to this.
if #ARGV == FIRST + WIDTH - 1 and ARGV[9] == '0' and ARGV[10] == '0' and ARGV[4] == '' and ARGV[5] == '0' and ARGV[6] == '0'
  and known and number > tonumber(string.match(known, '^%d+')) and call('HEXISTS', KEYS[9], ARGV[7]) == 0
  and (ARGV[12] == '' or string.byte(ARGV[12]) == 45 and call('EXISTS', KEYS[12]) == 0)
  and string.sub(ARGV[11], 1, 8) ~= '{"gt":"f' then
  local place = call('XADD', KEYS[tonumber(ARGV[8])], '*', 'j', ARGV[7], 'd', ARGV[11])
  local now = tonumber(string.match(place, '^%d+'))
  call('HSET', KEYS[9], ARGV[7], ARGV[8] .. place)
  call('HINCRBY', KEYS[11], 'enqueued', '1')
  call('HSET', KEYS[10], ARGV[1], ARGV[2] .. '|' .. now + ARGV[3] .. '|0|')
  return {'OK', now, ''}
end

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count = (#ARGV - FIRST + 1) / WIDTH
if count < 0 or count > 128 or count ~= math.floor(count) then
  return redis.error_reply('ERR add: ' .. #ARGV .. ' arguments are not 0 to 128 jobs')
end

local last, cursor, results = 0, '', ''
if known then
  local kept, size, rest = string.match(known, '^(%d+)|%d+|(%d+)|(.*)$')
  last, cursor, results = tonumber(kept), string.sub(rest, 1, size), string.sub(rest, size + 1)
end
if number <= last then return {'REPEAT', now, last, cursor, results} end
if ARGV[6] == '1' and number ~= last + 1 then return {'GAP', now, last, cursor} end

local most = tonumber(ARGV[5])
if most > 0 then
  local depth = call('HLEN', KEYS[9])
  if depth + count > most then return {'FULL', now, depth} end
end

-- Look: which ids are known, which dedup keys are held, and which of their holders live.
local places, holders, alive = {}, {}, {}
if count > 0 then
  local ids = {}
  for i = 1, count do ids[i] = ARGV[FIRST + (i - 1) * WIDTH] end
  places = call('HMGET', KEYS[9], unpack(ids))
end
if #KEYS > FIXED then
  holders = call('MGET', unpack(KEYS, FIXED + 1))
  local held = {}
  for i = 1, #holders do if holders[i] then held[#held + 1] = holders[i] end end
  if #held > 0 then
    local found = call('HMGET', KEYS[9], unpack(held))
    for i = 1, #held do alive[held[i]] = found[i] end
  end
end

-- Whether a worker has the job with this token just now.
local function runs(token)
  local entry = string.match(token, '^%d([%d%-]+)')
  if not entry then return false end
  local held = redis.pcall('XPENDING', KEYS[tonumber(string.sub(token, 1, 1))], 'g', entry, entry, 1)
  if held.err then return not string.find(held.err, 'NOGROUP', 1, true) and error(held.err) end
  return held[1] ~= nil and held[1][2] ~= '@handback'
end

-- Look: who is known as slow, and from which hint on jobs were.
local means, cut = {}, nil
local known_slow = call('EXISTS', KEYS[12]) == 1
local names, owners, is_hinted = {}, {}, false
for i = 1, count do
  local whose = ARGV[FIRST + i * WIDTH - 1]
  if whose ~= '' then
    is_hinted = is_hinted or string.byte(whose) ~= 45
    if known_slow and #whose > 1 then
      owners[#owners + 1], names[#names + 1] = i, string.sub(whose, 2)
    end
  end
end
if #names > 0 then
  local found = call('HMGET', KEYS[12], unpack(names))
  for i = 1, #names do means[owners[i]] = found[i] and tonumber(string.match(found[i], '^[%d%.]+')) end
end
if is_hinted then cut = tonumber(call('HGET', KEYS[13], 'cut') or nil) end

-- The digit of a job's lane; of a slow one also why, and what to sort it by.
local function lane_of(i, digit)
  local whose = ARGV[FIRST + i * WIDTH - 1]
  if whose == '' then return digit end
  local base = (digit - 1) % 3 + 1
  if means[i] then return base + 3, 'learned ' .. means[i], means[i] end
  local bin = string.byte(whose) - 48
  if bin < 0 then return digit end
  if cut then digit = base + (bin >= cut and 3 or 0) end
  if digit > 3 then return digit, 'hint', bin - 64 end
  return digit
end

-- Decide and write, job by job; what goes into slow lanes is written at the end.
local outcome, all_new = {}, true
local seen, index, locks, due, payloads = {}, {'HSET', KEYS[9]}, {'MSET'}, {'ZADD', KEYS[7]}, {'HSET', KEYS[8]}
local waiting, places_said, flows = {'ZADD', KEYS[14]}, {'HSET', KEYS[15]}, {}
local kept_at, slots, since, slow, earliest, taken_over, fresh = {}, {}, {}, {}, nil, 0, 0

local function delay_till(id, when, digit, envelope)
  local slot = slots[id] or #due + 1
  slots[id] = slot
  if not earliest or when < earliest then earliest = when end
  due[slot], due[slot + 1] = when, id
  local kept = kept_at[id] or #payloads + 1
  kept_at[id] = kept
  payloads[kept], payloads[kept + 1] = id, digit .. '|' .. since[id] .. '|' .. envelope
end

local function due_at(delay)
  if string.sub(delay, 1, 1) == '@' then return math.max(now, tonumber(string.sub(delay, 2))) end
  return now + tonumber(delay)
end

-- Puts a job of a fair queue to those who wait for the turn of its key; returns its place.
local function wait_for_turn(id, digit, envelope)
  local spec = string.match(envelope, '^{"gt":"([^"]*)"')
  local name = string.match(spec, '^f%d+,0=(%S+)')
  local mine = string.format('%s\0p%d%013.0f%s', name, (digit - 1) % 3, now, id)
  local n = #payloads
  payloads[n + 1], payloads[n + 2] = id, digit .. '|' .. string.format('%.0f', now) .. '|' .. envelope
  n = #waiting
  waiting[n + 1], waiting[n + 2] = 0, mine
  n = #places_said
  places_said[n + 1], places_said[n + 2] = id, string.format('-%s%64s @%.0f', spec, '', now)
  flows[name] = true
  return 'z=' .. mine
end

-- What a call of this scope comes to, given who holds the key: a result, or nil for a new job, which is put at `place`.
local function judge(holder, lock, scope, value, at)
  local token = holder and alive[holder]
  if not token then
    if holder and call('PTTL', KEYS[lock]) > 0 then return 'd' .. holder end -- a window after its end
    if holder then taken_over = taken_over + 1 end
    return nil, scope == 'd' and 'z~' or nil
  end
  local digit, envelope = ARGV[at + 1], ARGV[at + 4]
  if scope == 's' then
    if runs(token) then return nil end
  elseif scope == 'd' then
    if string.sub(token, 1, 2) == 'z>' then return 'd' .. holder end
    if token ~= 'z~' then return nil, 'z~' end
    since[holder] = since[holder] or string.match(call('HGET', KEYS[8], holder), '^%d|(%d+)|')
    delay_till(holder, math.min(due_at(ARGV[at + 2]), since[holder] + value), digit, envelope)
    return 'r' .. holder
  elseif scope == 'k' then
    local before = string.match(token, '^z>(.*)$')
    if before then
      since[holder] = now
      local lives = call('HEXISTS', KEYS[9], before) == 1
      if not lives then
        index[#index + 1], index[#index + 2] = holder, 'z'
        alive[holder] = 'z'
      end
      delay_till(holder, lives and KEPT_TILL or now, digit, envelope)
      return 'r' .. holder
    end
    if token == 'z' or runs(token) then return nil, 'z>' .. holder end
  end
  return 'd' .. holder
end

for i = 1, count do
  local at = FIRST + (i - 1) * WIDTH
  local id, delay, lock, place = ARGV[at], ARGV[at + 2], ARGV[at + 3], nil
  local scope, value
  if places[i] or seen[id] then
    outcome[i] = 'p'
  elseif lock ~= '0' then
    local plain = tonumber(lock)
    if plain then
      lock, scope = plain, ''
    else
      lock, scope, value = string.match(lock, '^(%d+)(%a)(%d*)$')
      lock, value = tonumber(lock), tonumber(value)
    end
    local holder = holders[lock - FIXED]
    if holder or scope == 'd' then outcome[i], place = judge(holder, lock, scope, value, at) end
  end
  if outcome[i] then
    all_new = false
  else
    outcome[i], seen[id], fresh = 'n', true, fresh + 1
    local digit, why, cost = lane_of(i, tonumber(ARGV[at + 1]))
    if not place and delay ~= '0' then place = 'z' end
    if place then
      since[id] = now
      delay_till(id, string.sub(place, 2, 2) == '>' and KEPT_TILL or due_at(delay), digit, ARGV[at + 4])
    elseif string.sub(ARGV[at + 4], 1, 8) == '{"gt":"f' then
      place = wait_for_turn(id, digit, ARGV[at + 4])
    elseif why then
      slow[#slow + 1] = {cost, i, digit, id, ARGV[at + 4], why}
      place = digit .. '?' -- known at the end
    else
      place = digit .. call('XADD', KEYS[digit], '*', 'j', id, 'd', ARGV[at + 4])
    end
    if scope == 't' or scope == 'p' then
      call('SET', KEYS[lock], id, 'PX', scope == 't' and value or value - now % value)
    elseif scope then
      locks[#locks + 1], locks[#locks + 2] = KEYS[lock], id
    end
    if scope then holders[lock - FIXED], alive[id] = id, place end
    index[#index + 1], index[#index + 2] = id, place
  end
end
table.sort(slow, function(a, b) return a[1] > b[1] or (a[1] == b[1] and a[2] < b[2]) end)
for _, job in ipairs(slow) do
  local digit, id = job[3], job[4]
  local place = call('XADD', KEYS[digit], '*', 'j', id, 'd', job[5], 'c', job[6])
  index[#index + 1], index[#index + 2] = id, digit .. place -- the last one counts
end
if taken_over > 0 then call('HINCRBY', KEYS[11], 'dedup_taken_over', taken_over) end
if fresh > 0 then call('HINCRBY', KEYS[11], 'enqueued', fresh) end
if #index > 2 then call(unpack(index)) end
if #locks > 1 then call(unpack(locks)) end
if #payloads > 2 then call(unpack(payloads)) end
if #waiting > 2 then
  call(unpack(places_said))
  call(unpack(waiting))
  local virtual = -1 - (call('ZSCORE', KEYS[16], 'v') or -1)
  for name in pairs(flows) do
    if not call('ZSCORE', KEYS[16], 'w' .. name) then
      local own = tonumber(call('ZSCORE', KEYS[16], 'r' .. name) or RESTING) - RESTING
      call('ZADD', KEYS[16], string.format('%.17g', math.max(own, virtual)), 'w' .. name)
      call('ZREM', KEYS[16], 'r' .. name)
    end
  end
  if call('XLEN', KEYS[1]) == 0 then call('XADD', KEYS[1], '*', 'w', '1') end
end
if #due > 2 then
  local next_due = call('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES')[2]
  call(unpack(due))
  -- A blocked worker sleeps until the due time that it knows; tell one that there is an earlier one.
  if not next_due or earliest < tonumber(next_due) then call('XADD', KEYS[1], '*', 'w', '1') end
end
local reply = all_new and '' or table.concat(outcome, '\n')
local keep_until = now + tonumber(ARGV[3])
call('HSET', KEYS[10], ARGV[1], string.format('%d|%.0f|%d|', number, keep_until, #ARGV[4]) .. ARGV[4] .. reply)

-- Each new producer forgets a few that have not been seen for long.
if not known then
  local some = call('HRANDFIELD', KEYS[10], 8, 'WITHVALUES')
  for i = 1, #some, 2 do
    if tonumber(string.match(some[i + 1], '^%d+|(%d+)|')) < now then call('HDEL', KEYS[10], some[i]) end
  end
end
return {'OK', now, reply}
