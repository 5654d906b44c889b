#!lua flags=allow-oom
-- cycle: a worker's whole conversation with a partition, in one call:
-- beat, settle, requeue, renew, promote, take over, read.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 outbox, 11 workers, 12 dead, 13 control, 14 pause,
--       15 counts, 16 cost, 17 gates, 18 places, 19 openings, 20 fair, 21.. dedup keys and results
-- ARGV  1 consumer, 2 jobs wanted, 3 dead after ms (-1: take over from nobody), 4 newest control entry seen,
--       5 outbox_max (0: no outbox), 6 dead_max,
--       then sections, each a number of rows and the rows (at most 128 a section):
--         settled   token, job id, record                                       these jobs ended
--         dedups    job id, place of the key in KEYS, window ms                 of jobs in `settled`; 0: the key is free
--                   now, -1: its TTL goes on. A job that was kept behind this one is due now
--         results   job id, place of the key in KEYS, ttl ms, result            of jobs in `settled`
--         letters   job id, envelope, record                                    of jobs in `settled` that are dead
--         requeued  token, job id, delay ms, lane digit, enqueued ms, envelope, record ('': none)
--                   Instead of a delay the name of a block that the job waits for (`h:..`, `k:..`), or `?` and what no
--                   worker here knows
--         renewed   token, job id                                               still running
--         markers   lane digit, entry id                                        wake-up entries to throw away
--         reads     lane digit, the most to read, the most when the other lanes left room   in this order;
--                   what one slow lane (digit 4 to 6) gives counts for all of them
-- Returns {'FENCED', now ms}: the worker was given up. Nothing was written; it must drop what it holds
--         {'OK', now ms, next due ms or -1, {refused job ids}, {job ids no longer ours to renew},
--          {claimed: {digit, entry id, token, delivery, crashes, fields}..}, {read: digit, entries, ..},
--          {control entries}, {what is stopped: `queue`, `h:..` a handler, `k:..` a user key}, us that are past now ms}
--
-- A token that differs from the index names a job that is not this worker's any more: refused, and nothing of it is
-- written. So a call that is repeated after a lost reply settles nothing twice.
--
-- A job whose envelope begins with its gates starts when it has passed them; until then it waits at the first one that is
-- closed. `gates` holds, all at score 0, `<gate>\0h<job id>` for each place that is taken and `<gate>\0p<order><job id>` for
-- each job that waits; `places` job id -> `+` (may start) or `-` (waits) and its gates, and of one that waits ` @` since when
-- it has; `openings` `w<gate>` at the time to look at the gate, in us, and `t<gate>` at FAR + when its rate is used up. So
-- what is counted is who is there.
--
-- The first gate of a job in a fair queue is that of its key, and each cycle opens it for as many jobs as it wants: always for
-- the key whose virtual time is least. That is what its jobs ran, in ms by its weight; a start is charged with the mean,
-- and the rest when the job has ended. `fair` holds `w<gate>` of who waits at its virtual time, `r<gate>` of who does not at
-- RESTING + it, `v` at -1 - the virtual time of the queue, which no key that comes is behind, and `m` at -1 - the mean.
--
-- A job that waits for a block lies in `delayed` behind all dates, at BLOCKED + the block's number * SPAN + the ms when it was enqueued.
local GROUP, HANDBACK, BATCH, BLOCKED, SPAN = 'g', '@handback', 128, 2 ^ 48, 2 ^ 42
local DUE = 64 -- of a backlog of due jobs a call brings so many: it has as many to settle and to read, and all wait for it
local OFFER_AGAIN, FORGET = 5000, 60000 -- ms: a job that no worker here knows; and that there was one
local LANES, DELAYED, PAYLOAD, INDEX, OUTBOX, WORKERS, DEAD, CONTROL, PAUSE, COUNTS, COST = 6, KEYS[7], KEYS[8],
  KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16]
local GATES, PLACES, OPENINGS, FAIR, FAR, RESTING = KEYS[17], KEYS[18], KEYS[19], KEYS[20], 2 ^ 52, 2 ^ 44
local call, find, match, byte, cut = redis.call, string.find, string.match, string.byte, string.sub

local time = call('TIME')
local now, now_us = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
local consumer, want, dead_after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local outbox_max = tonumber(ARGV[5])

-- Check: the worker, and that the sections add up.
local beat = call('ZSCORE', WORKERS, consumer)
if not beat or tonumber(beat) <= 0 then return {'FENCED', now} end

local position = 7
local function section(width)
  local rows = tonumber(ARGV[position])
  if not rows or rows > BATCH then return nil end
  local first = position + 1
  position = first + rows * width
  return {rows = rows, first = first, last = position - 1, width = width}
end
local settled, dedups, results, letters = section(3), section(3), section(4), section(3)
local requeued, renewed, markers, reads = section(7), section(2), section(2), section(3)
if not (settled and dedups and results and letters and requeued and renewed and markers and reads)
  or position ~= #ARGV + 1 then
  return redis.error_reply('ERR cycle: the sections of ' .. #ARGV .. ' arguments do not add up')
end

local function place_of(token)
  local star = find(token, '*', 2, true)
  return byte(token) - 48, cut(token, 2, star and star - 1)
end

local function tokens_of(part)
  if part.rows == 0 then return {} end
  local ids = {}
  for at = part.first, part.last, part.width do ids[#ids + 1] = ARGV[at + 1] end
  return call('HMGET', INDEX, unpack(ids))
end

local function lane_lists() return {{}, {}, {}, {}, {}, {}} end

local function append(list, value) list[#list + 1] = value end

call('ZADD', WORKERS, 'XX', now, consumer)

-- Settle and requeue.
local accepted, refused, acked, ended, left, records = {}, {}, lane_lists(), {}, {}, {}
local entry = {'XADD', OUTBOX, 'MAXLEN', '~', ARGV[5], '*', 'w', consumer}
local bare = #entry

local tokens = tokens_of(settled)
local n, row = #entry, 0
for at = settled.first, settled.last, 3 do
  row = row + 1
  local token, id = ARGV[at], ARGV[at + 1]
  if tokens[row] == token and not accepted[id] then
    accepted[id] = true
    ended[#ended + 1] = id
    left[#left + 1], records[id] = id, ARGV[at + 2]
    local lane, entry_id = place_of(token)
    append(acked[lane], entry_id)
    entry[n + 1], entry[n + 2] = id, ARGV[at + 2]
    n = n + 2
  else
    append(refused, id)
  end
end

-- When a job is due that waits for something else than time; nil: now.
local function due_after(what, enqueued)
  local known = call('HGET', PAUSE, what)
  if string.sub(what, 1, 1) == '?' then
    local since = known and string.match(known, '"since":(%d+)') or string.format('%.0f', now)
    if known or call('HLEN', PAUSE) < 2 * BATCH then
      call('HSET', PAUSE, what, string.format('%.0f|0|{"since":%s}', now + FORGET, since))
    end
    return now + OFFER_AGAIN
  end
  local number = string.match(known or '', '^%d+|(%d+)|')
  -- One that is over, and is still known, lets its jobs go below.
  if number then return BLOCKED + number * SPAN + enqueued end
end

tokens, row = tokens_of(requeued), 0
for at = requeued.first, requeued.last, 7 do
  row = row + 1
  local token, id = ARGV[at], ARGV[at + 1]
  if tokens[row] == token and not accepted[id] then
    accepted[id] = true
    append(left, id)
    records[id] = ARGV[at + 6]
    local delay, digit, enqueued, envelope, record = tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4], ARGV[at + 5],
      ARGV[at + 6]
    local due
    if not delay then
      due = due_after(ARGV[at + 2], enqueued)
    elseif delay > 0 then
      due = math.ceil(now_us / 1000) + delay -- counted from `now` it would come too soon, by less than a ms
    end
    if due then
      call('HSET', PAYLOAD, id, digit .. '|' .. enqueued .. '|' .. envelope)
      call('ZADD', DELAYED, string.format('%.0f', due), id)
      call('HSET', INDEX, id, 'z')
    else
      local place = call('XADD', KEYS[tonumber(digit)], '*', 'j', id, 'd', envelope, 'q', enqueued)
      call('HSET', INDEX, id, digit .. place)
    end
    local lane, entry_id = place_of(token)
    append(acked[lane], entry_id)
    if record ~= '' then
      entry[n + 1], entry[n + 2] = id, record
      n = n + 2
    end
  else
    append(refused, id)
  end
end

-- Gates: `c<limit>,0=<name>`, so many at once, and `r<us>,<burst>=<name>`, one in so many us and so many at once. What is
-- before the name is the same for all jobs of a handler, and is read once.
local limits = {}
local function gate_of(spec)
  local is = find(spec, '=', 1, true)
  local head = cut(spec, 1, is - 1)
  local limit = limits[head]
  if not limit then
    local kind, first, second = match(head, '(%l)(%d+),(%d+)$')
    limit = {kind = kind, first = tonumber(first), second = tonumber(second)}
    limits[head] = limit
  end
  return limit, cut(spec, is + 1)
end

local function gates_of(spec)
  local list = {}
  for each in string.gmatch(spec, '%l%d+,%d+=%S+') do
    local limit, name = gate_of(each)
    append(list, {limit = limit, name = name})
  end
  return list
end

local function first_at(name)
  return call('ZRANGE', GATES, '[' .. name .. '\0p', '(' .. name .. '\0q', 'BYLEX', 'LIMIT', 0, 1)[1]
end

-- Places that are taken and not written yet, and how many at each gate: they are written many at once.
local taking, taken, fresh = {'ZADD', GATES}, 2, {}
local function write_places()
  if taken > 2 then call(unpack(taking)) end
  taking, taken, fresh = {'ZADD', GATES}, 2, {}
end

-- A hash of short values is searched from its beginning; one that ever held a value of more than 64 bytes is not. So
-- the first of those that are written together is made long.
local PAD = string.rep(' ', 64)

-- Where a job would wait at a gate. Its order is told by a function of two arguments: few jobs wait.
local function waiting_place(name, id, order, one, other) return name .. '\0p' .. order(one, other) .. id end

-- Who is at the gates when a batch is read: one look at all of them, while they are few, is less than one for each job.
local is_at
local function look_around(jobs)
  if jobs < 16 or call('ZCARD', GATES) > 2 * jobs then return end
  is_at = {}
  local members = call('ZRANGE', GATES, 0, -1)
  for i = 1, #members do is_at[cut(members[i], 1, find(members[i], '\0', 1, true) - 1)] = true end
end

local function is_deserted(name)
  if is_at then return not is_at[name] end
  return call('ZLEXCOUNT', GATES, '[' .. name, '(' .. name .. '\1') == 0
end

-- Whether the gate lets a job pass that would wait there in this order; of a rate also when it does.
local function is_open(limit, name, id, order, one, other)
  local opens = now_us
  if limit.kind == 'c' then
    local held = fresh[name] or 0
    if is_deserted(name) then return held < limit.first end
    held = held + call('ZLEXCOUNT', GATES, '[' .. name .. '\0h', '(' .. name .. '\0i')
    if held >= limit.first then return false end
  else
    local used = tonumber(call('ZSCORE', OPENINGS, 't' .. name) or FAR) - FAR
    opens = math.max(now_us, used - (limit.second - 1) * limit.first)
    if opens > now_us then return false, opens end
  end
  return call('ZLEXCOUNT', GATES, '[' .. name .. '\0p', '(' .. waiting_place(name, id, order, one, other)) == 0, opens
end

local function exact(number) return string.format('%.17g', number) end

-- `v`, the virtual time of the queue, or `m`, the mean run time of its jobs.
local function fair_value(what, default)
  local score = call('ZSCORE', FAIR, what)
  return score and -1 - score or default
end

local function set_fair_value(what, value) call('ZADD', FAIR, exact(-1 - value), what) end

-- A key waits from now on, not behind the time of the queue.
local joined
local function join_fair(name)
  if call('ZSCORE', FAIR, 'w' .. name) then return end
  local own = tonumber(call('ZSCORE', FAIR, 'r' .. name) or RESTING) - RESTING
  call('ZADD', FAIR, exact(math.max(own, fair_value('v', 0))), 'w' .. name)
  call('ZREM', FAIR, 'r' .. name)
  joined = true
end

-- A job has run: its key has paid the mean, and pays the rest.
local function charge(said, record)
  local weight, name = string.match(said, '^%Sf(%d+),0=(%S+)')
  local paid, begun, over = string.match(said, ' e(%S+)'), string.match(record, '"b":(%d+),"f":(%d+)')
  if not (weight and paid and begun) then return end
  local ran, mean = math.max(0, over - begun), fair_value('m', 1)
  set_fair_value('m', mean + (ran - mean) / 8)
  local who = call('ZSCORE', FAIR, 'w' .. name) and 'w' or call('ZSCORE', FAIR, 'r' .. name) and 'r'
  if who then call('ZINCRBY', FAIR, exact((ran - paid) / weight), who .. name) end
end

-- Take what a gate has to give; returns the place of the job there if it is closed.
local function pass_gate(limit, name, id, order, one, other)
  local open, opens
  if limit.kind == 'f' then join_fair(name) else open, opens = is_open(limit, name, id, order, one, other) end
  if not open then
    if opens then call('ZADD', OPENINGS, string.format('%.0f', opens), 'w' .. name) end
    return waiting_place(name, id, order, one, other)
  end
  if limit.kind == 'c' then
    taking[taken + 1], taking[taken + 2] = '0', name .. '\0h' .. id
    taken = taken + 2
    fresh[name] = (fresh[name] or 0) + 1
  else
    local used = math.max(now_us, tonumber(call('ZSCORE', OPENINGS, 't' .. name) or FAR) - FAR)
    call('ZADD', OPENINGS, string.format('%.0f', FAR + used + limit.first), 't' .. name)
  end
end

-- The same with the gates from this one on; returns the number of one that is closed, and the place there.
local function pass_gates(id, gates, from, order, one, other)
  for i = from, #gates do
    local mine = pass_gate(gates[i].limit, gates[i].name, id, order, one, other)
    if mine then return i, mine end
  end
end

-- The same with what the envelope of a job says. Most have a single gate.
local function pass_all(id, spec, order, one, other)
  if find(spec, ' ', 1, true) then
    local _, mine = pass_gates(id, gates_of(spec), 1, order, one, other)
    return mine
  end
  local limit, name = gate_of(spec)
  return pass_gate(limit, name, id, order, one, other)
end

local function enqueued_of(found)
  local fields = found[2]
  return fields[5] == 'q' and fields[6] or match(found[1], '^%d+')
end

-- Who waits goes by priority and by the time of its enqueue.
local function order_in(lane, found) return string.format('%d%013.0f', (lane - 1) % 3, enqueued_of(found)) end

local function same(order) return order end

-- What ended or goes back gives up its places; those gates are open now, if anybody waits: that has a payload and no time.
local opened, parked = {}, 0
if #left > 0 and call('EXISTS', PLACES) == 1 then
  local specs, free, forget, head, from = call('HMGET', PLACES, unpack(left)), {'ZREM', GATES}, {'HDEL', PLACES}, ' ', 0
  local freed, last, waits = 2, 2, call('HLEN', PAYLOAD) > call('ZCARD', DELAYED)
  local function give_up(name, id)
    freed = freed + 1
    free[freed] = name .. '\0h' .. id
    if waits then append(opened, name) end
  end
  for i = 1, #left do
    local spec, id = specs[i], left[i]
    if spec then
      last = last + 1
      forget[last] = id
      if find(spec, head, 1, true) ~= 1 then
        head = match(spec, '^.c%d+,0=') or ' '
        from = #head + 1
      end
      if from > 2 and not find(spec, ' ', from, true) then
        give_up(cut(spec, from), id)
      else
        if byte(spec, 2) == 102 then charge(spec, records[id]) end
        for name in string.gmatch(spec, 'c%d+,0=(%S+)') do give_up(name, id) end
      end
    end
  end
  if freed > 2 then call(unpack(free)) end
  if last > 2 then call(unpack(forget)) end
end

if letters.rows > 0 then
  local kept = call('XLEN', DEAD)
  for at = letters.first, letters.last, 3 do
    if accepted[ARGV[at]] then
      call('XADD', DEAD, 'MAXLEN', '~', ARGV[6], '*', 'j', ARGV[at], 'd', ARGV[at + 1], 'r', ARGV[at + 2])
      kept = kept + 1
    end
  end
  local evicted = kept - call('XLEN', DEAD)
  if evicted > 0 then
    call('HINCRBY', COUNTS, 'evicted', evicted)
    call('HSET', COUNTS, 'evicted_at', string.format('%.0f', now))
  end
end
for at = results.first, results.last, 4 do
  if accepted[ARGV[at]] then
    local key = KEYS[tonumber(ARGV[at + 1])]
    call('RPUSH', key, ARGV[at + 3])
    call('PEXPIRE', key, ARGV[at + 2])
  end
end
if outbox_max > 0 and n > bare then call(unpack(entry)) end
if dedups.rows > 0 then
  local keys = {}
  for at = dedups.first, dedups.last, 3 do append(keys, KEYS[tonumber(ARGV[at + 1])]) end
  local holders, free = call('MGET', unpack(keys)), {'DEL'}
  row = 0
  for at = dedups.first, dedups.last, 3 do
    row = row + 1
    local id, window, holder = ARGV[at], tonumber(ARGV[at + 2]), holders[row]
    if accepted[id] and holder == id then
      if window > 0 then
        call('PEXPIRE', keys[row], window)
      elseif window == 0 or call('PTTL', keys[row]) < 0 then
        append(free, keys[row])
      end
    elseif accepted[id] and holder and call('HGET', INDEX, holder) == 'z>' .. id then
      call('ZADD', DELAYED, now, holder)
      call('HSET', INDEX, holder, 'z')
    end
  end
  if #free > 1 then call(unpack(free)) end
end
for at = markers.first, markers.last, 2 do append(acked[tonumber(ARGV[at])], ARGV[at + 1]) end
if #ended > 0 then call('HDEL', INDEX, unpack(ended)) end
for lane = 1, LANES do
  if #acked[lane] > 0 then
    call('XACK', KEYS[lane], GROUP, unpack(acked[lane]))
    call('XDEL', KEYS[lane], unpack(acked[lane]))
  end
end

-- Renew what runs long, while it is still ours.
local lost = {}
if renewed.rows > 0 then
  local running = lane_lists()
  tokens, row = tokens_of(renewed), 0
  for at = renewed.first, renewed.last, 2 do
    row = row + 1
    if tokens[row] == ARGV[at] then
      local lane, entry_id = place_of(ARGV[at])
      append(running[lane], entry_id)
    else
      append(lost, ARGV[at + 1])
    end
  end
  for lane = 1, LANES do
    if #running[lane] > 0 then
      local claim = {'XCLAIM', KEYS[lane], GROUP, consumer, 0}
      for _, entry_id in ipairs(running[lane]) do append(claim, entry_id) end
      append(claim, 'JUSTID')
      call(unpack(claim))
    end
  end
end

-- A delayed job goes by what is known of its key when it is due.
local function lane_now(digit, envelope)
  if not string.find(envelope, '"u":', 1, true) then return digit end
  local is_json, job = pcall(cjson.decode, envelope)
  local known = is_json and type(job.u) == 'string' and call('HGET', COST, job.h .. '|' .. job.u)
  if not known then return digit end
  return (digit - 1) % 3 + 4, 'learned ' .. string.match(known, '^[%d%.]+')
end

-- Promote what is due, so many at most. The payload is looked up before anything is removed.
local function promote(from, to, most)
  local due = call('ZRANGE', DELAYED, from, to, 'BYSCORE', 'LIMIT', 0, most)
  if #due == 0 then return 0 end
  local payloads, places = call('HMGET', PAYLOAD, unpack(due)), {'HSET', INDEX}
  local known_slow = call('EXISTS', COST) == 1
  for i = 1, #due do
    if payloads[i] then
      local digit, enqueued, envelope = string.match(payloads[i], '^(%d)|(%d+)|(.*)$')
      local why
      digit = tonumber(digit)
      if known_slow then digit, why = lane_now(digit, envelope) end
      local fields = {'j', due[i], 'd', envelope, 'q', enqueued, why and 'c', why}
      local place = call('XADD', KEYS[digit], '*', unpack(fields))
      append(places, due[i])
      append(places, digit .. place)
    end
  end
  if #places > 2 then call(unpack(places)) end
  call('ZREM', DELAYED, unpack(due))
  call('HDEL', PAYLOAD, unpack(due))
  return #due
end
promote('-inf', now, DUE)

-- What is stopped. When a block is over its jobs go back into their lanes, oldest first, a batch in each cycle.
local paused, stopped, wake, lifted = false, {}, nil, 0
local rules = call('HGETALL', PAUSE)
for i = 1, #rules, 2 do
  local name = rules[i]
  local till, number = string.match(rules[i + 1], '^(%d+)|(%d*)')
  till, number = tonumber(till) or 0, tonumber(number) or 0
  if till > 0 and till <= now then
    local first, past = string.format('%.0f', BLOCKED + number * SPAN), string.format('(%.0f', BLOCKED + (number + 1) * SPAN)
    local moved = number == 0 and 0 or lifted < BATCH and promote(first, past, BATCH) or BATCH
    lifted = lifted + moved
    if moved < BATCH then call('HDEL', PAUSE, name) else wake = now end
  elseif string.sub(name, 1, 1) ~= '?' then
    append(stopped, name)
    paused = paused or name == 'queue'
    if till > 0 and (not wake or till < wake) then wake = till end
  end
end

-- Let in who waits at a gate, in order, as long as it lets them. Returns whether it could be done in this cycle.
-- With `paid`, let in one whatever the gate says, and note what was paid for it; returns its weight.
local function let_in(name, paid)
  for _ = 1, BATCH do
    local head = first_at(name)
    if not head then return not paid end
    if parked >= BATCH then return false end
    local order, id = string.sub(head, #name + 3, #name + 16), string.sub(head, #name + 17)
    local known, payload = call('HGET', PLACES, id), call('HGET', PAYLOAD, id)
    local gates, at = gates_of(known or ''), 1
    while gates[at] and gates[at].name ~= name do at = at + 1 end
    if not payload or not gates[at] then
      call('ZREM', GATES, head) -- nobody's; a job that lies nowhere is the reconciler's
    else
      local closed, mine = pass_gates(id, gates, paid and at + 1 or at, same, order)
      if closed == at then return true end
      parked = parked + 1
      if paid then
        known = known .. ' e' .. paid
        call('HSET', PLACES, id, known)
      end
      if closed then
        call('ZADD', GATES, 0, mine)
        call('HSET', INDEX, id, 'z=' .. mine)
        write_places()
      else
        local digit, enqueued, envelope = string.match(payload, '^(%d)|(%d+)|(.*)$')
        local lane, why = tonumber(digit), nil
        if call('EXISTS', COST) == 1 then lane, why = lane_now(lane, envelope) end
        local fields = {'j', id, 'd', envelope, 'q', enqueued, why and 'c', why}
        local place = call('XADD', KEYS[lane], '*', unpack(fields))
        call('HSET', INDEX, id, lane .. place)
        call('HSET', PLACES, id, '+' .. string.sub(known, 2))
        write_places()
        call('HDEL', PAYLOAD, id)
      end
      call('ZREM', GATES, head)
      if paid then return gates[at].limit.first end
    end
  end
  return false
end

-- Let as many of those in whose turn it is as may be read; returns whether others wait.
local function take_turns(most)
  local virtual, mean = fair_value('v', 0), fair_value('m', 1)
  for _ = 1, most do
    local first = call('ZRANGE', FAIR, 0, '(' .. exact(RESTING), 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if #first == 0 then break end
    local name, own = string.sub(first[1], 2), tonumber(first[2])
    local weight = let_in(name, exact(mean))
    virtual = math.max(virtual, own)
    if weight then own = own + mean / weight end
    if weight and first_at(name) then
      call('ZADD', FAIR, exact(own), first[1])
    else
      call('ZREM', FAIR, first[1])
      call('ZADD', FAIR, exact(RESTING + own), 'r' .. name)
    end
  end
  set_fair_value('v', virtual)
  local rested = call('ZRANGE', FAIR, exact(RESTING), '(' .. exact(RESTING + virtual), 'BYSCORE', 'LIMIT', 0, BATCH)
  if #rested > 0 then call('ZREM', FAIR, unpack(rested)) end
  return call('ZCOUNT', FAIR, 0, '(' .. exact(RESTING)) > 0
end

for _, name in ipairs(opened) do
  if not let_in(name) then call('ZADD', OPENINGS, 'NX', now_us, 'w' .. name) end
end
-- Rates count at the start: what passes them now finds a slot here.
if want > 0 and not paused and call('EXISTS', OPENINGS) == 1 then
  local due = call('ZRANGE', OPENINGS, '-inf', now_us, 'BYSCORE', 'LIMIT', 0, BATCH)
  if #due > 0 then call('ZREM', OPENINGS, unpack(due)) end
  for _, what in ipairs(due) do
    if not let_in(string.sub(what, 2)) then call('ZADD', OPENINGS, now_us, what) end
  end
  due = call('ZRANGE', OPENINGS, FAR, string.format('%.0f', FAR + now_us), 'BYSCORE', 'LIMIT', 0, BATCH)
  if #due > 0 then call('ZREM', OPENINGS, unpack(due)) end
end

-- Have a job wait at a gate: it is no delivery any more.
local function hold_back(lane, found, id, mine)
  call('ZADD', GATES, 0, mine)
  call('HSET', PAYLOAD, id, lane .. '|' .. enqueued_of(found) .. '|' .. found[2][4])
  call('HSET', INDEX, id, 'z=' .. mine)
  call('XACK', KEYS[lane], GROUP, found[1])
  call('XDEL', KEYS[lane], found[1])
  parked = parked + 1
end

-- Let a job pass that has a single gate, of so many at once, where nobody is: so it has no place there yet either. Most are
-- of that kind. Returns what `places` says of it, or nil: look at its gates one by one.
local head, name_at, says = nil, 0, ''
local function passed_alone(envelope, id)
  if not head then return nil end
  local name = cut(envelope, name_at, find(envelope, '"', name_at, true) - 1)
  if fresh[name] or find(name, ' ', 1, true) or not is_deserted(name) then return nil end
  fresh[name] = 1
  taking[taken + 1], taking[taken + 2] = '0', name .. '\0h' .. id
  taken = taken + 2
  return says .. name
end

-- Whether a job has gates. The envelopes of a handler's jobs begin alike, up to the name of the first one: see `gate_of`.
local function is_gated(envelope)
  if head and find(envelope, head, 1, true) == 1 then return true end
  if cut(envelope, 1, 7) ~= '{"gt":"' then return false end
  head = match(envelope, '^{"gt":"c[1-9]%d*,0=')
  if head then name_at, says = #head + 1, '+' .. cut(head, 8) end
  return true
end

-- Those of the entries of a lane that may start. The others wait at a gate now.
local function admitted(lane, entries)
  local said, last, kept, has_looked = {'HSET', PLACES}, 2, nil, false
  for i = 1, #entries do
    local found, mine = entries[i], nil
    local id, envelope = found[2][2], found[2][4]
    if found[2][1] == 'j' and is_gated(envelope) then
      if not has_looked then look_around(#entries) end
      has_looked = true
      local place = passed_alone(envelope, id)
      if not place and byte(call('HGET', PLACES, id) or '-') ~= 43 then
        local spec = cut(envelope, 8, find(envelope, '"', 8, true) - 1)
        mine = pass_all(id, spec, order_in, lane, found)
        place = mine and string.format('-%s @%.0f', spec, now) or '+' .. spec
      end
      if place then
        said[last + 1], said[last + 2] = id, last == 2 and place .. PAD or place
        last = last + 2
      end
    end
    if mine then
      hold_back(lane, found, id, mine)
      kept = kept or {unpack(entries, 1, i - 1)}
    elseif kept then
      append(kept, found)
    end
  end
  if last > 2 then call(unpack(said)) end
  write_places()
  is_at = nil
  return kept or entries
end

-- Take over from one worker that is gone, no more than can be run here. Those before it that held nothing are taken off
-- the books on the way: an empty one must not cost the next one's jobs a beat.
local claimed = {}
local gone, looks, next_gone = nil, 1, nil
if want > 0 and not paused and dead_after >= 0 then
  -- A worker that was itself away trusts no beat: after an outage all look old. What was given up is still free.
  if now - tonumber(beat) > dead_after then dead_after = now end
  local silent_since = math.max(now - dead_after, 1)
  next_gone = function() return call('ZRANGE', WORKERS, '-inf', '(' .. silent_since, 'BYSCORE', 'LIMIT', 0, 1)[1] end
  gone = next_gone()
end
while gone do
  local has_more = false
  for lane = 1, LANES do
    local held = call('XPENDING', KEYS[lane], GROUP, '-', '+', math.min(want, BATCH) + 1, gone)
    local take, orphans = {'XCLAIM', KEYS[lane], GROUP, consumer, 0}, {}
    for i = 1, #held do
      if i > want or i > BATCH then
        has_more = true
        break
      end
      append(take, held[i][1])
    end
    if #take > 5 then
      for _, found in ipairs(call(unpack(take))) do
        local id = found[2][1] == 'j' and found[2][2]
        local place = lane .. found[1]
        local token = id and call('HGET', INDEX, id)
        if token and (token == place or string.sub(token, 1, #place + 1) == place .. '*') then
          local delivery, crashes = string.match(token, '%*(%d+)%*(%d+)$')
          delivery, crashes = (tonumber(delivery) or 1) + 1, tonumber(crashes) or 0
          if gone ~= HANDBACK then crashes = crashes + 1 end
          token = place .. '*' .. delivery .. '*' .. crashes
          if #admitted(lane, {found}) == 1 then
            call('HSET', INDEX, id, token)
            append(claimed, {lane, found[1], token, delivery, crashes, found[2]})
            want = want - 1
          end
        else
          append(orphans, found[1])
        end
      end
      if #orphans > 0 then
        call('XACK', KEYS[lane], GROUP, unpack(orphans))
        call('XDEL', KEYS[lane], unpack(orphans))
      end
    end
  end
  if has_more then
    -- Its name is void from the first job taken; the rest waits for a free worker, and one is woken.
    call('ZADD', WORKERS, 'XX', 0, gone)
    call('XADD', KEYS[1], '*', 'w', '1')
  else
    for lane = 1, LANES do call('XGROUP', 'DELCONSUMER', KEYS[lane], GROUP, gone) end
    call('ZREM', WORKERS, gone)
  end
  gone = #claimed == 0 and not has_more and looks < 8 and next_gone() or nil
  looks = looks + 1
end

local is_more = want > 0 and not paused and call('EXISTS', FAIR) == 1 and take_turns(math.min(want, BATCH))

joined = false
-- Read from a lane what may start. What may not makes room for the next.
local function read_lane(digit, ask)
  local got = {}
  while ask > 0 and parked < BATCH do
    local some = call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', ask, 'STREAMS', KEYS[digit], '>')
    local entries = some and some[1][2] or {}
    local kept = admitted(digit, entries)
    if kept == entries and #got == 0 then return entries end
    for _, found in ipairs(kept) do append(got, found) end
    if #entries < ask then return got end
    ask = ask - #kept
  end
  return got
end

-- Read, lane by lane; what a lane's share left over goes to the lanes that have more.
local read, slow = {}, 0
if not paused then
  for pass = 1, 2 do
    for at = reads.first, reads.last, 3 do
      if want <= 0 then break end
      local digit, most = tonumber(ARGV[at]), tonumber(ARGV[at + pass])
      local ask = math.min(want, digit > 3 and most - slow or most, BATCH)
      if ask > 0 then
        local got = read_lane(digit, ask)
        if #got > 0 then
          append(read, digit)
          append(read, got)
          want = want - #got
          if digit > 3 then slow = slow + #got end
        end
      end
    end
  end
end

local news = call('XRANGE', CONTROL, '(' .. ARGV[4], '+', 'COUNT', 32)
local next_due = tonumber(call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')[2] or BLOCKED)
if wake and wake < next_due then next_due = wake end
if want > 0 and not paused then
  local opens = tonumber(call('ZRANGE', OPENINGS, 0, 0, 'WITHSCORES')[2] or FAR)
  if opens < FAR then next_due = math.min(next_due, math.ceil(opens / 1000)) end
  if parked >= BATCH or is_more or joined then next_due = now end -- who joined while lanes were read had no turn yet
end
return {'OK', now, next_due < BLOCKED and next_due or -1, refused, lost, claimed, read, news, stopped, now_us % 1000}
