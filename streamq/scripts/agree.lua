#!lua flags=allow-oom
-- agree: into how many partitions a queue is divided, as whoever came first has said.
--
-- KEYS  1 counts, 2 workers   of the queue's first partition
-- ARGV  1 how many the caller goes by, 2 `1`: store that, if nothing was said yet
-- Returns how many there are: if not the caller's number, the caller must not touch the queue
--
-- One partition is what a queue has that was used before anything was said; for it nothing is stored.
local said = redis.call('HGET', KEYS[1], 'partitions')
if said then return tonumber(said) end
local count = tonumber(ARGV[1])
if count == 1 then return 1 end
if redis.call('HEXISTS', KEYS[1], 'enqueued') == 1 or redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'partitions', count) end
return count
