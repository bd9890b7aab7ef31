-- mark.lua: note on a primary of a cluster up to where that primary has everything.
--
-- KEYS[1]  the mark, in a hash slot that the node owns
-- ARGV[1]  generation, 8 hex digits: the writer's
-- ARGV[2]  replication id of the node that the writer knows; '' = do not check
-- ARGV[3]  id of the node in the cluster
-- ARGV[4]  applied: commit LSN at or below which nothing is missing here, 16 hex
-- ARGV[5]  end LSN of that transaction, 16 hex
-- ARGV[6]  applied and end, 16 hex each: what this mark has acknowledged before; '' = nothing
--
-- Returns 'back'        the mark is behind what it has acknowledged: nothing was written
--         'ok'          the mark is not behind what was asked for
--         'node'        the node's history is another one: nothing was written
--         'generation'  the mark belongs to a later generation: nothing was written
--
-- Slot: one key, so one slot.
--
-- Why: a node that comes back with older data, or a replica that is promoted, has an older
-- mark, and that says from where on it has to be told again; no other node knows it. It is
-- written after the node has acknowledged everything up to it. Why the node's id: the mark
-- moves with its slot to another node, of which it says nothing. Why the replication id and
-- the comparison: see checkpoint.lua.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return 'node'
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation', 'node', 'applied', 'end', 'replid')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
if h.err then
  redis.call('UNLINK', KEYS[1])
elseif h[1] then
  if h[1] > ARGV[1] then return 'generation' end
  local at = (h[3] or '') .. (h[4] or '')
  if h[1] == ARGV[1] and h[2] == ARGV[3] and #at == 32 and at < ARGV[6] then return 'back' end
  if h[1] == ARGV[1] and h[2] == ARGV[3] and h[5] == ARGV[2]
    and (h[3] > ARGV[4] or h[3] == ARGV[4] and h[4] >= ARGV[5]) then return 'ok' end
end
-- First, since a server above maxmemory refuses HSET as a script's first write.
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'replid', ARGV[2], 'node', ARGV[3], 'applied', ARGV[4], 'end', ARGV[5])
return 'ok'
