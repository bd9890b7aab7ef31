-- epoch.lua: note which life of the source is followed now.
--
-- KEYS[1]  the control hash
-- ARGV[1]  generation, 8 hex digits: the writer's
-- ARGV[2]  replication id of the node that the writer knows; '' = do not check
-- ARGV[3]  epoch
--
-- Returns 'ok', 'node', 'absent' or 'generation' (as checkpoint.lua)
--
-- Slot: one key, so one slot.
--
-- Why a script: a later generation is of another history, which a late write must
-- not be taken for.
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
-- First, since a server above maxmemory refuses HSET as a script's first write.
redis.call('PERSIST', KEYS[1])
-- What was settled was so in the life before: it has yet to be shown that this one goes on there.
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'settled', '0000000000000000')
return 'ok'
