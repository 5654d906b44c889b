#!lua
-- add: one call of a producer puts any number of jobs (at most 128) into a partition.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 producers, 11 counts, 12 cost, 13 times, 14 gates, 15 places,
--       16 fair, 17.. dedup keys
-- ARGV  1 producer, 2 number of the call (from 1, rising), 3 keep ms: for how long the producer is remembered,
--       4 cursor to store, 5 most jobs the partition may hold (0: any), 6 '1': the number must follow the last one,
--       7 number of jobs, 8 how all of them go in ('': each says it),
--       then per job: id, how it goes in (unless all go the same way), envelope,
--       then, unless no job has a key or a hint, per job whose: '' or the bin of its cost hint as a character ('-': none)
--       and its field in cost ('': it has no key)
-- Returns {'OK', now ms, '' or a result per job}   '' when every job is new; else per job 'n' new,
--                                                  'p' already present, 'd' .. id of the dedup key's holder,
--                                                  or 'r' .. id of the waiting job that got these arguments
--         {'REPEAT', now ms, last number, cursor, results of the last call}   nothing was written
--         {'GAP', now ms, last number, cursor}                                nothing was written
--         {'FULL', now ms, depth}                                             nothing was written
--
-- How a job goes in: the digit of its lane, or with what makes it no plain one: digit|delay|place of its dedup key|scope
--   delay  ms (0: now), or '@' and the due time in ms itself
--   place  0: no dedup key; '+': the next one in KEYS; else its number among the dedup keys, from 1
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
-- A plain job alone goes through append.lua, unless that says that it is none.
-- No allow-oom: when memory is full Redis refuses the whole call before the first write.
local RESTING = 2 ^ 44
local KEPT_TILL = 253370764800000 -- 9999-01-01: whoever ends before it sets the time
local FIRST, FIXED = 9, 16
local call, byte = redis.call, string.byte
local number, known = tonumber(ARGV[2]), call('HGET', KEYS[10], ARGV[1])
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local begin = time[2] % 1000 == 0 and now or now + 1 -- the ms from which a delay counts: counted from `now` it ends too soon
local count, common = tonumber(ARGV[7]) or -1, ARGV[8]
local WIDTH = common == '' and 3 or 2
local OWNERS = FIRST + count * WIDTH -- where it is said whose the jobs are
local has_owners = #ARGV >= OWNERS
if count < 0 or count > 128 or #ARGV ~= OWNERS - 1 + (has_owners and count or 0) then
  return redis.error_reply('ERR add: ' .. #ARGV .. ' arguments are not ' .. ARGV[7] .. ' jobs of 128 at most')
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
local ids, places, holders, alive = {}, {}, {}, {}
for i = 1, count do ids[i] = ARGV[FIRST + (i - 1) * WIDTH] end
if count > 0 then places = call('HMGET', KEYS[9], unpack(ids)) end

-- A small hash is a list that is searched from end to end, unless it ever held a value of more than 64 bytes. That is
-- seen to with many jobs, and for those who send them one by one with every 32nd call.
local index = {'HSET', KEYS[9]}
local size = (count > 8 or number % 32 == 1) and call('HLEN', KEYS[9]) + count or 0
local is_list = size > 8 and size <= 512 + count
if is_list then index[3], index[4] = '', string.rep(' ', 65) end

local function write_index()
  if #index <= (is_list and 4 or 2) then return end
  call(unpack(index))
  if is_list then call('HDEL', KEYS[9], '') end
end

-- Whether the jobs are new, for the same lane, for now, nobody is known as slow, and their dedup keys, if any, are free.
-- Then the keys are theirs, and all that follows below comes to adding them one by one.
local function are_plain()
  local how = string.sub(common, 2)
  if common == '' or how ~= '' and (how ~= '|0|+|' or #KEYS ~= FIXED + count) then return false end
  if has_owners and call('EXISTS', KEYS[12]) == 1 then return false end
  local seen = {}
  for i = 1, count do
    local id, whose = ids[i], has_owners and byte(ARGV[OWNERS + i - 1]) or 45
    if places[i] or seen[id] or whose ~= 45 or byte(ARGV[FIRST + i * 2 - 1], 3) == 103 then return false end -- {"gt":
    seen[id] = true
  end
  if how == '' then return true end
  local locks = {'MSETNX'}
  for i = 1, count do locks[2 * i], locks[2 * i + 1] = KEYS[FIXED + i], ids[i] end
  return call(unpack(locks)) == 1
end

local function keep_call(reply)
  local kept = string.format('%d|%.0f|%d|', number, now + tonumber(ARGV[3]), #ARGV[4]) .. ARGV[4] .. reply
  call('HSET', KEYS[10], ARGV[1], kept)
end

if known and count > 0 and are_plain() then
  local digit = string.sub(common, 1, 1)
  local lane, at = KEYS[tonumber(digit)], #index
  for i = 1, count do
    local id = ids[i]
    index[at + 1], index[at + 2] = id, digit .. call('XADD', lane, '*', 'j', id, 'd', ARGV[FIRST + i * 2 - 1])
    at = at + 2
  end
  write_index()
  call('HINCRBY', KEYS[11], 'enqueued', count)
  keep_call('')
  return {'OK', now, ''}
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
  local whose = has_owners and ARGV[OWNERS + i - 1] or ''
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
  local whose = has_owners and ARGV[OWNERS + i - 1] or ''
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
local seen, locks, due, payloads = {}, {'MSET'}, {'ZADD', KEYS[7]}, {'HSET', KEYS[8]}
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
  return begin + tonumber(delay)
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

local hows, keys_used = {}, 0

-- How a job goes in: digit, delay, and with a dedup key also its place among them, its scope and the number of that.
local function how_of(i)
  local said = common ~= '' and common or ARGV[FIRST + (i - 1) * WIDTH + 1]
  local how = hows[said]
  if not how then
    local digit, delay, place, scope, value = string.match(said, '^(%d)|(@?%d+)|(%+?%d*)|(%a?)(%d*)$')
    how = {digit = tonumber(digit or said), delay = delay or '0', scope = scope, value = tonumber(value)}
    if place == '+' then how.is_next = true elseif place ~= '0' then how.lock = tonumber(place) end
    hows[said] = how
  end
  if how.is_next then
    keys_used = keys_used + 1
    how.lock = keys_used
  end
  return how
end

-- What a call comes to whose dedup key is held, or that is debounced: a result, or nil for a new job, which is put at `place`.
local function judge(how, envelope)
  local holder, scope = holders[how.lock], how.scope
  local token = holder and alive[holder]
  if not token then
    if holder and call('PTTL', KEYS[FIXED + how.lock]) > 0 then return 'd' .. holder end -- a window after its end
    if holder then taken_over = taken_over + 1 end
    return nil, scope == 'd' and 'z~' or nil
  end
  if scope == 's' then
    if runs(token) then return nil end
  elseif scope == 'd' then
    if string.sub(token, 1, 2) == 'z>' then return 'd' .. holder end
    if token ~= 'z~' then return nil, 'z~' end
    since[holder] = since[holder] or string.match(call('HGET', KEYS[8], holder), '^%d|(%d+)|')
    delay_till(holder, math.min(due_at(how.delay), since[holder] + how.value), how.digit, envelope)
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
      delay_till(holder, lives and KEPT_TILL or now, how.digit, envelope)
      return 'r' .. holder
    end
    if token == 'z' or runs(token) then return nil, 'z>' .. holder end
  end
  return 'd' .. holder
end

for i = 1, count do
  local id, envelope, how = ids[i], ARGV[FIRST + i * WIDTH - 1], how_of(i)
  local lock, scope, place = how.lock, how.lock and how.scope, nil
  if places[i] or seen[id] then
    outcome[i] = 'p'
  elseif lock and (holders[lock] or scope == 'd') then
    outcome[i], place = judge(how, envelope)
  end
  if outcome[i] then
    all_new = false
  else
    outcome[i], seen[id], fresh = 'n', true, fresh + 1
    local digit, why, cost = lane_of(i, how.digit)
    if not place and how.delay ~= '0' then place = 'z' end
    if place then
      since[id] = now
      delay_till(id, string.sub(place, 2, 2) == '>' and KEPT_TILL or due_at(how.delay), digit, envelope)
    elseif string.sub(envelope, 1, 8) == '{"gt":"f' then
      place = wait_for_turn(id, digit, envelope)
    elseif why then
      slow[#slow + 1] = {cost, i, digit, id, envelope, why}
      place = digit .. '?' -- known at the end
    else
      place = digit .. call('XADD', KEYS[digit], '*', 'j', id, 'd', envelope)
    end
    if scope == 't' or scope == 'p' then
      call('SET', KEYS[FIXED + lock], id, 'PXAT', now + (scope == 't' and how.value or how.value - now % how.value))
    elseif scope then
      locks[#locks + 1], locks[#locks + 2] = KEYS[FIXED + lock], id
    end
    if scope then holders[lock], alive[id] = id, place end
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
write_index()
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
keep_call(reply)

-- Each new producer forgets a few that have not been seen for long.
if not known then
  local some = call('HRANDFIELD', KEYS[10], 8, 'WITHVALUES')
  for i = 1, #some, 2 do
    if tonumber(string.match(some[i + 1], '^%d+|(%d+)|')) < now then call('HDEL', KEYS[10], some[i]) end
  end
end
return {'OK', now, reply}
