#!lua
-- replay: a dead letter becomes a job again, under its old id: a new life with its first attempt.
--
-- KEYS  1-6 lanes, 7 index, 8 dead, 9 its result, then, if the job has one, 10 its dedup key
-- ARGV  1 entry id of the dead letter, 2 job id, 3 lane digit, 4 envelope
-- Returns 'OK'              it is enqueued, and the letter is gone
--         'GONE'            there is no such letter: it was replayed or deleted
--         'ALIVE'           a job with this id lives; nothing was written
--         'HELD' .. job id  that job holds the dedup key; nothing was written
local id = ARGV[2]
local letter = redis.call('XRANGE', KEYS[8], ARGV[1], ARGV[1])[1]
if not letter or letter[2][2] ~= id then return 'GONE' end
if redis.call('HEXISTS', KEYS[7], id) == 1 then return 'ALIVE' end
if KEYS[10] then
  local holder = redis.call('GET', KEYS[10])
  if holder and redis.call('HEXISTS', KEYS[7], holder) == 1 then return 'HELD' .. holder end
  redis.call('SET', KEYS[10], id)
end
local entry = redis.call('XADD', KEYS[tonumber(ARGV[3])], '*', 'j', id, 'd', ARGV[4])
redis.call('HSET', KEYS[7], id, ARGV[3] .. entry)
redis.call('XDEL', KEYS[8], ARGV[1])
redis.call('DEL', KEYS[9]) -- that of its last life
return 'OK'
