-- settle.lua: say up to where everything is applied, what was held back included.
--
-- KEYS[1]  the control hash
-- ARGV[1]  generation, 8 hex digits: the writer's
-- ARGV[2]  replication id of the node that the writer knows; '' = do not check
-- ARGV[3]  nodes: the primaries that it was found out on
-- ARGV[4]  settled: nothing that ended at or below it is missing, held, or being purged, 16 hex
--
-- Returns 'ok', 'node', 'absent' or 'generation' (as checkpoint.lua), or
--         'nodes'  the hash speaks of other primaries: nothing was written
--
-- Slot: one key, so one slot.
--
-- Why a script: a late copy must not take the position back, nor say of one set of
-- primaries what was true of another, which may have lost what had been applied.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return 'node'
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation', 'nodes', 'settled')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
if h.err or not h[1] then return 'absent' end
if h[1] ~= ARGV[1] then return 'generation' end
if h[2] ~= ARGV[3] then return 'nodes' end
if ARGV[4] > (h[3] or '') then
  -- First, since a server above maxmemory refuses HSET as a script's first write.
  redis.call('PERSIST', KEYS[1])
  redis.call('HSET', KEYS[1], 'settled', ARGV[4])
end
return 'ok'
