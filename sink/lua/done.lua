-- done.lua: remove from a class's taken set what has been applied.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the taken set
-- ARGV[1]  generation, 8 hex digits: the caller's
-- ARGV[2]  replication id of the node that the caller applied to; '' = do not check
-- ARGV[3]  negative time to keep them under, for a replay; '' = they are removed
-- ARGV[4..] members, at most 200
--
-- Returns 'ok', 'node', 'absent' or 'generation' (as checkpoint.lua)
--
-- Slot: all keys have the slot's hash tag, so one slot.
--
-- Why the replication id: a node that was demoted and promoted again has perhaps lost
-- what was applied there, and must not lose what is to be applied again. A late copy
-- removes nothing else: a member carries the take that it belongs to, and this is called
-- only once all of that is applied.
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
for i = 4, #ARGV do
  -- In this order, since a server above maxmemory refuses ZADD as a script's first write.
  if redis.call('ZREM', KEYS[2], ARGV[i]) == 1 and ARGV[3] ~= '' then
    redis.call('ZADD', KEYS[2], ARGV[3], ARGV[i])
  end
end
return 'ok'
