#!lua flags=allow-oom
-- cancel: jobs that wait end as cancelled at once; a job that runs is told to stop by its worker, or left.
--
-- KEYS  1-6 lanes, 7 delayed, 8 payload, 9 index, 10 outbox, 11 control, 12 gates, 13 places, 14 openings,
--       15.. dedup keys and results
-- ARGV  1 outbox_max (0: no outbox), 2 reason, 3 '1': a job that runs is left alone,
--       then per job (at most 128, each once): id, the token that was seen, record, place of its dedup key in KEYS (0: none),
--       place of its result in KEYS, for how long ms its result is kept (0: nobody waits for it)
-- Returns per job  'CANCELLED'  it waited, and has ended
--                  'ASKED'      it runs; its worker has been told. One that was handed back runs nowhere: it waits
--                  'RUNS'       it runs, and is left alone
--                  'GONE'       no living job has this id
--                  'MOVED'      it is not where it was seen: look again
local FIRST, WIDTH = 4, 6
local call = redis.call
local count = (#ARGV - FIRST + 1) / WIDTH
if count < 1 or count > 128 or count ~= math.floor(count) then
  return redis.error_reply('ERR cancel: ' .. #ARGV .. ' arguments are not 1 to 128 jobs')
end
local ids = {}
for i = 1, count do ids[i] = ARGV[FIRST + (i - 1) * WIDTH] end

-- Look: where each job is, and whether a worker has it.
local tokens, verdicts, handed_back, said = call('HMGET', KEYS[9], unpack(ids)), {}, {}, {'w', 'operator'}
local function judge(i, token)
  if not token then return 'GONE' end
  if token ~= ARGV[FIRST + (i - 1) * WIDTH + 1] then return 'MOVED' end
  if string.sub(token, 1, 1) == 'z' then return 'CANCELLED' end
  local entry = string.match(token, '^%d([%d%-]+)')
  local held = redis.pcall('XPENDING', KEYS[tonumber(string.sub(token, 1, 1))], 'g', entry, entry, 1)
  if held.err and not string.find(held.err, 'NOGROUP', 1, true) then error(held.err) end
  local holder = not held.err and held[1] and held[1][2]
  handed_back[i] = holder == '@handback'
  return (not holder or handed_back[i]) and 'CANCELLED' or ARGV[3] == '1' and 'RUNS' or 'ASKED'
end
for i = 1, count do
  verdicts[i] = judge(i, tokens[i])
  if verdicts[i] == 'CANCELLED' then
    said[#said + 1], said[#said + 2] = ids[i], ARGV[FIRST + (i - 1) * WIDTH + 2]
  end
end

-- Its places are free, and whoever waited behind it may be the first now: the next cycle looks.
local wakes = false
local function leave_gates(id, token)
  local gates = call('HGET', KEYS[13], id)
  if not gates then return end
  local time = call('TIME')
  if string.sub(token, 1, 2) == 'z=' then call('ZREM', KEYS[12], string.sub(token, 3)) end
  for name in string.gmatch(gates, '=(%S+)') do
    call('ZREM', KEYS[12], name .. '\0h' .. id)
    call('ZADD', KEYS[14], time[1] * 1000000 + time[2], 'w' .. name)
  end
  call('HDEL', KEYS[13], id)
  wakes = true
end

local function release_dedup(id, token, lock)
  local holder = call('GET', lock)
  local before = string.match(token, '^z>(.*)$')
  if holder == id and before and call('HEXISTS', KEYS[9], before) == 1 then
    call('SET', lock, before) -- it was kept behind that one, which has the key again
  elseif holder == id then
    call('DEL', lock)
  elseif holder and call('HGET', KEYS[9], holder) == 'z>' .. id then
    call('HSET', KEYS[9], holder, 'z')
    call('ZADD', KEYS[7], call('TIME')[1] * 1000, holder)
    wakes = true
  end
end

local function finish(i, id, token)
  local at = FIRST + (i - 1) * WIDTH
  local lock, result, keep_ms = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  if string.sub(token, 1, 1) == 'z' then
    call('ZREM', KEYS[7], id)
    call('HDEL', KEYS[8], id)
  else
    local lane, entry = KEYS[tonumber(string.sub(token, 1, 1))], string.match(token, '^%d([%d%-]+)')
    if handed_back[i] then call('XACK', lane, 'g', entry) end
    call('XDEL', lane, entry)
  end
  call('HDEL', KEYS[9], id)
  leave_gates(id, token)
  if keep_ms > 0 then
    call('RPUSH', KEYS[result], ARGV[at + 2])
    call('PEXPIRE', KEYS[result], keep_ms)
  end
  if lock > 0 then release_dedup(id, token, KEYS[lock]) end
end

if tonumber(ARGV[1]) > 0 and #said > 2 then call('XADD', KEYS[10], 'MAXLEN', '~', ARGV[1], '*', unpack(said)) end
for i = 1, count do
  if verdicts[i] == 'CANCELLED' then
    -- One before it in this call may have let it go on from behind itself.
    finish(i, ids[i], call('HGET', KEYS[9], ids[i]) or tokens[i])
  elseif verdicts[i] == 'ASKED' then
    call('XADD', KEYS[11], 'MAXLEN', '~', 1000, '*', 'do', 'cancel', 'job', ids[i], 'why', ARGV[2])
    wakes = true
  end
end
if wakes then call('XADD', KEYS[1], '*', 'w', '1') end
return verdicts
