#!lua flags=no-writes,allow-oom
-- crowd: who has a place at gates, and who waits there. Reads only.
--
-- KEYS  1 gates, 2 places, 3 payload, 4 delayed, 5 openings, 6 fair
-- ARGV  1 the most gates to look at in each way (at most 128), 2 whether to look only at those of handlers ('1')
-- Returns {now ms, jobs that wait at gates, keys that wait for their turn, virtual time of the queue,
--          mean run time in ms, '1' if these may not be all gates,
--          {{name, gate of the envelope, jobs with a place, jobs that wait, since when one of them has waited in ms or '',
--            when a rate lets the next one in, in us, or '', virtual time of the key or ''}..}}
--
-- There may be a gate for each user. Looked at are, in this order: those of handlers, those of jobs drawn by chance, which
-- finds where many wait, and the first ones by name. What the keys hold stands in cycle.lua.
local GATES, PLACES, OPENINGS, FAIR, RESTING = KEYS[1], KEYS[2], KEYS[5], KEYS[6], 2 ^ 44
local call = redis.call
local time = call('TIME')
local most, chosen, seen, is_part = math.min(tonumber(ARGV[1]), 128), {}, {}, false

local function choose(name)
  if not seen[name] then
    seen[name] = true
    chosen[#chosen + 1] = name
  end
end

local function name_of(member) return string.sub(member, 1, string.find(member, '\0', 1, true) - 1) end

local function walk(from, to)
  for _ = 1, most do
    local member = call('ZRANGE', GATES, from, to, 'BYLEX', 'LIMIT', 0, 1)[1]
    if not member then return end
    choose(name_of(member))
    from = '(' .. name_of(member) .. '\1'
  end
  is_part = is_part or #call('ZRANGE', GATES, from, to, 'BYLEX', 'LIMIT', 0, 1) > 0
end

walk('[h:', '(h;')
walk('[rh:', '(rh;')
if ARGV[2] ~= '1' then
  if call('ZCARD', GATES) > most then
    local drawn = call('HRANDFIELD', PLACES, most, 'WITHVALUES')
    for i = 2, #drawn, 2 do
      for name in string.gmatch(drawn[i], '=(%S+)') do choose(name) end
    end
  end
  walk('-', '+')
end

local rows = {}
for _, name in ipairs(chosen) do
  local held = call('ZLEXCOUNT', GATES, '[' .. name .. '\0h', '(' .. name .. '\0i')
  local waiting, since, spec = call('ZLEXCOUNT', GATES, '[' .. name .. '\0p', '(' .. name .. '\0q'), nil, nil
  -- The first one of each priority; of them one may have waited longest.
  for priority = 0, waiting > 0 and 2 or -1 do
    local order = name .. '\0p' .. priority
    local head = call('ZRANGE', GATES, '[' .. order, '(' .. name .. '\0p' .. priority + 1, 'BYLEX', 'LIMIT', 0, 1)[1]
    local said = head and call('HGET', PLACES, string.sub(head, #order + 14))
    local at = said and tonumber(string.match(said, ' @(%d+)'))
    if at and (not since or at < since) then since = at end
    spec = spec or said
  end
  if not spec then
    local holder = call('ZRANGE', GATES, '[' .. name .. '\0h', '(' .. name .. '\0i', 'BYLEX', 'LIMIT', 0, 1)[1]
    spec = holder and call('HGET', PLACES, string.sub(holder, #name + 3))
  end
  local mine = ''
  for gate, its in string.gmatch(spec or '', '(%l%d+,%d+=(%S+))') do
    if its == name then mine = gate end
  end
  if held + waiting > 0 then
    rows[#rows + 1] = {
      name, mine, held, waiting, since and string.format('%.0f', since) or '',
      string.sub(mine, 1, 1) == 'r' and call('ZSCORE', OPENINGS, 'w' .. name) or '', call('ZSCORE', FAIR, 'w' .. name) or '',
    }
  end
end
return {
  time[1] * 1000 + math.floor(time[2] / 1000), math.max(0, call('HLEN', KEYS[3]) - call('ZCARD', KEYS[4])),
  call('ZCOUNT', FAIR, 0, '(' .. string.format('%.0f', RESTING)),
  string.format('%.0f', -1 - (call('ZSCORE', FAIR, 'v') or -1)), string.format('%.3f', -1 - (call('ZSCORE', FAIR, 'm') or -2)),
  is_part and '1' or '', rows,
}
