#!lua flags=allow-oom
-- tidy: dedup keys whose job does not live any more are freed, and names of workers that are gone are forgotten.
--
-- KEYS  1-6 lanes, 7 index, 8 workers, 9.. dedup keys (at most 128)
-- ARGV  1 ms without a sign after which a name that holds nothing is forgotten, 2 whether to do it ('1') or only to look
-- Returns {places in KEYS of the dedup keys that dangle, names that are no worker's any more}
--
-- A dedup key with a TTL is the window after a job's end: it goes by itself. A name that holds deliveries stays.
local HANDBACK = '@handback'
local dangling, names = {}, {}
for i = 9, #KEYS do
  local holder = redis.call('GET', KEYS[i])
  if holder and redis.call('PTTL', KEYS[i]) == -1 and redis.call('HEXISTS', KEYS[7], holder) == 0 then
    dangling[#dangling + 1] = i
    if ARGV[2] == '1' then redis.call('DEL', KEYS[i]) end
  end
end
local idle, held, seen = {}, {}, {}
for lane = 1, 6 do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[lane], 'g')
  for _, row in ipairs(consumers.err and {} or consumers) do
    local fields = {}
    for i = 1, #row, 2 do fields[row[i]] = row[i + 1] end
    local name = fields['name']
    if fields['pending'] > 0 or fields['idle'] <= tonumber(ARGV[1]) then held[name] = true end
    if #idle < 768 then idle[#idle + 1] = {lane, name} end
  end
end
for _, place in ipairs(idle) do
  local lane, name = place[1], place[2]
  if name ~= HANDBACK and not held[name] and not redis.call('ZSCORE', KEYS[8], name) then
    if not seen[name] then names[#names + 1] = name end
    seen[name] = true
    if ARGV[2] == '1' then redis.call('XGROUP', 'DELCONSUMER', KEYS[lane], 'g', name) end
  end
end
return {dangling, names}
