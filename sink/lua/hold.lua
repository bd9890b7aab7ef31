-- hold.lua: take the sets of a class's held invalidations into use, or out of it.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the held set of the class
-- KEYS[3]  its taken set
-- ARGV[1]  generation, 8 hex digits: the writer's
-- ARGV[2]  replication id of the node that the writer knows; '' = do not check
-- ARGV[3]  field of the control hash: held:<class>
-- ARGV[4]  mark: nonce, hold in ms and names of families, separated by spaces; '' = out of use
-- ARGV[5]  nonce of the mark
-- ARGV[6]  'empty' = only where nothing is in the sets; '' = whatever is in them
--
-- Returns 'ok'    marked, and each set has the sentinel of the mark
--         'busy'  there is something in the sets: nothing was written
--         'node', 'absent' or 'generation' (as checkpoint.lua)
--
-- Slot: all keys have the slot's hash tag, so one slot.
--
-- Why a sentinel: an eviction takes a whole key and tells nobody. A set that has not
-- the member which the mark names was evicted since. The batches that put
-- invalidations in never write it, or they would hide that; and since the nonce is new
-- each time, neither can a late copy of this command. The mark and the sentinels are
-- written at once, so that no crash leaves one without the other.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return 'node'
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
if h.err or not h[1] then return 'absent' end
if h[1] ~= ARGV[1] then return 'generation' end
local foreign = {}
for i = 2, 3 do
  local n = redis.pcall('ZCOUNT', KEYS[i], '-inf', '(+inf')
  if type(n) == 'table' then
    if not string.find(n.err, 'WRONGTYPE', 1, true) then return n end
    foreign[#foreign + 1] = KEYS[i]
  elseif n > 0 and ARGV[6] == 'empty' then
    return 'busy'
  end
end
-- First, since a server above maxmemory refuses HSET and ZADD as a script's first write.
redis.call('PERSIST', KEYS[1])
for _, key in ipairs(foreign) do redis.call('UNLINK', key) end
if ARGV[4] == '' then
  redis.call('UNLINK', KEYS[2], KEYS[3])
  redis.call('HDEL', KEYS[1], ARGV[3])
  return 'ok'
end
for i = 2, 3 do
  local old = redis.call('ZRANGEBYSCORE', KEYS[i], '+inf', '+inf')
  if #old > 0 then redis.call('ZREM', KEYS[i], unpack(old)) end
  redis.call('ZADD', KEYS[i], '+inf', '! ' .. ARGV[5])
end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
return 'ok'
