-- checkpoint.lua: move a slot's control hash forward, never back.
--
-- KEYS[1]  the control hash
-- ARGV[1]  generation, 8 hex digits: the writer's
-- ARGV[2]  replication id that the batches were applied under; '' = do not check
-- ARGV[3]  sent: the highest commit LSN about to be applied, 16 hex; '' = none
-- ARGV[4]  applied: commit LSN at or below which nothing is missing, 16 hex; '' = none
-- ARGV[5]  end LSN of that transaction, 16 hex
-- ARGV[6]  its timeline, 8 hex
-- ARGV[7]  its commit time, microseconds since 1970, 16 hex
-- ARGV[8]  fresh_as_of: nothing visible then is missing, 16 hex; '' = as before
-- ARGV[9]  updated: the writer's clock, microseconds since 1970, 16 hex
-- ARGV[10] nodes: the primaries that have all up to applied; '' = as before. Others than
--          before have yet to settle everything (settle.lua)
-- ARGV[11] txn: the transaction at applied, '<applied> <xid, 8 hex>'; '' = it need not
--          come through the slot again
-- ARGV[12] sent, applied and end, 16 hex each: what this hash has acknowledged before
--
-- Returns 'ok'          nothing in the hash is behind what was asked for
--         'back'        the hash is behind what it has acknowledged: nothing was written
--         'node'        the node's history is another one: nothing was written
--         'absent'      no hash (flushed or evicted): nothing was written
--         'generation'  the hash belongs to another generation: nothing was written
--
-- Slot: one key, so one slot.
--
-- Why a script: a command whose reply was lost may run long after its writer
-- gave up on it, so every position is compared where it is written. Positions
-- are fixed-width lower-case hex, compared as strings: Lua's numbers lose 64-bit
-- integers. Why the replication id: a node that was demoted, synchronised from
-- another one and promoted again keeps its connections and may have lost the
-- very batch that this checkpoint vouches for; only the id tells. Why what was acknowledged:
-- under the same id a server can be taken back by hand (SWAPDB, DEBUG RELOAD, a copy that is
-- restored into it), and to move the hash on would vouch for what is lost.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return 'node'
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation', 'sent', 'applied', 'end', 'nodes')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
if h.err or not h[1] then return 'absent' end
if h[1] ~= ARGV[1] then return 'generation' end
local function behind(field, known)
  return #(field or '') == 16 and field < known -- one that is no position was spoilt
end
local sent, reached, last = string.sub(ARGV[12], 1, 16), string.sub(ARGV[12], 17, 32), string.sub(ARGV[12], 33, 48)
if behind(h[2], sent) or behind(h[3], reached) or h[3] == reached and behind(h[4], last) then return 'back' end
local set = {}
if ARGV[3] ~= '' and ARGV[3] > (h[2] or '') then
  set = {'sent', ARGV[3]}
end
-- On an idle source the end moves on while the newest commit stays.
local applied = h[3] or ''
if ARGV[4] ~= '' and (ARGV[4] > applied or ARGV[4] == applied and ARGV[5] > (h[4] or '')) then
  for i, name in ipairs({'applied', 'end', 'timeline', 'commit_time', 'fresh_as_of'}) do
    if ARGV[3 + i] ~= '' then
      set[#set + 1] = name
      set[#set + 1] = ARGV[3 + i]
    end
  end
  set[#set + 1] = 'txn'
  set[#set + 1] = ARGV[11]
end
-- Once a replay has reached the stored position again, these nodes have it all.
if ARGV[10] ~= '' and ARGV[4] >= applied then
  set[#set + 1] = 'nodes'
  set[#set + 1] = ARGV[10]
  if ARGV[10] ~= h[5] then
    set[#set + 1] = 'settled'
    set[#set + 1] = '0000000000000000'
  end
end
if #set > 0 then
  set[#set + 1] = 'updated'
  set[#set + 1] = ARGV[9]
  -- A server above maxmemory refuses HSET as a script's first write, and takes
  -- it after any other. The hash must never expire anyway.
  redis.call('PERSIST', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(set))
end
return 'ok'
