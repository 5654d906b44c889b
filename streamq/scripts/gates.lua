#!lua flags=allow-oom
-- gates: places at gates are held against the jobs that are there.
--
-- KEYS  1 index, 2 gates, 3 places, 4 openings, 5 lane that wakes a reader
-- ARGV  1 whether to free what is nobody's ('1') or only to look, 2 cursor (0 starts anew), 3 about how many to look at
-- Returns {next cursor, ids of jobs that were said to have a place or to wait, and do not}
--
-- A place is right while its job is in a lane, or waits at another gate; one who waits, while the index says so. What is
-- freed, and each gate where somebody waits, is looked at by the next cycle.
local call = redis.call
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local found = call('ZSCAN', KEYS[2], ARGV[2], 'COUNT', ARGV[3])
local wrong, is_woken = {}, false

local function look_at(name)
  if ARGV[1] ~= '1' then return end
  if call('ZADD', KEYS[4], 'NX', now_us, 'w' .. name) == 1 then is_woken = true end
end

for i = 1, #found[2], 2 do
  local member = found[2][i]
  local cut = string.find(member, '\0', 1, true)
  local name, waits = string.sub(member, 1, cut - 1), string.sub(member, cut + 1, cut + 1) == 'p'
  local id = string.sub(member, cut + (waits and 16 or 2))
  local token = call('HGET', KEYS[1], id)
  local is_right = token and call('HEXISTS', KEYS[3], id) == 1
  if waits then
    is_right = is_right and token == 'z=' .. member
  else
    is_right = is_right and (string.sub(token, 1, 1) ~= 'z' or string.sub(token, 1, 2) == 'z=')
  end
  if not is_right then
    wrong[#wrong + 1] = id
    if ARGV[1] == '1' then
      call('ZREM', KEYS[2], member)
      if not token then call('HDEL', KEYS[3], id) end
    end
  end
  if waits or not is_right then look_at(name) end
end
if is_woken then call('XADD', KEYS[5], '*', 'w', '1') end
return {found[1], wrong}
