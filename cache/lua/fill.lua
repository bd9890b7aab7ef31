-- fill.lua: store what was loaded, if nothing has happened to the key since.
--
-- KEYS[1]  the data key
-- ARGV[1]  token that read.lua gave the load to
-- ARGV[2]  kind: 'V', or 'N' for a row that is not there
-- ARGV[3]  ttl: how long it is fresh, ms
-- ARGV[4]  stale: how long after that it may be served while one caller refreshes it, ms
-- ARGV[5]  fail_safe: how long after that it is kept for when the source is down, ms
-- ARGV[6]  the rest: ' ' and the variable fields, '\n', payload
--
-- Returns 1  stored
--         0  refused: the key is gone, or somebody else's, or the deadline has passed
--
-- Slot: one key, so one slot.
--
-- Why it holds: the token is in the key only if the key has been neither unlinked, nor
-- expired, nor evicted, nor marked stale since read.lua put it there, which was before
-- the snapshot of what is stored here. So every invalidation that the snapshot may
-- have missed is still to come. A copy of this call that arrives late finds the
-- holder gone: what is stored has none.
-- The stamp is the one of the lease: what the caller has learned since is not what its
-- snapshot was taken under. The fields are described in read.lua.
local cur = redis.pcall('GETRANGE', KEYS[1], 0, 72)
if type(cur) == 'table' then
  if not string.find(cur.err, 'WRONGTYPE', 1, true) then return cur end
  return 0
end
if string.sub(cur, 1, 4) ~= 'cdc2' or string.sub(cur, 6, 21) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
if string.sub(cur, 22, 33) <= string.format('%012x', ms) then return 0 end
local fresh = ms + ARGV[3]
local stale = fresh + ARGV[4]
redis.call('SET', KEYS[1], 'cdc2' .. ARGV[2] .. '0000000000000000000000000000'
  .. string.format('%012x%012x', fresh, stale) .. string.sub(cur, 58, 73) .. ARGV[6], 'PX', ARGV[3] + ARGV[4] + ARGV[5])
return 1
