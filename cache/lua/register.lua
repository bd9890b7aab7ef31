-- register.lua: note that an entry depends on an entity, before it is loaded.
--
-- KEYS[1]  the entity's set of dependents, sorted by when each may be forgotten
-- ARGV[1]  expiry: how long from now the entry can live at most, ms
-- ARGV[2]  member: '<family> <data key>'
--
-- Returns the member's score, ms since 1970 by this server's clock, as text.
--
-- Slot: one key, so one slot. The data key may lie in another one.
--
-- Why it holds: the caller has the entry's lease and opens its snapshot after this
-- call. The daemon reads the set after the change is visible: either the member is
-- there, and the lease or the entry is unlinked, or it was registered later still, and
-- the snapshot sees the change. The daemon removes a member after the unlink, if
-- its score is the one that it has read. So each registration must raise the score,
-- also two in one millisecond, or under a clock that was set back: the later one would be
-- taken for the one that was dealt with. What is left too long is pruned here, 100 at a
-- time, since a script holds up every other client. The set's own expiry never shrinks.
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.pcall('ZSCORE', KEYS[1], ARGV[2])
if type(found) == 'table' and found.err then
  if not string.find(found.err, 'WRONGTYPE', 1, true) then return found end
  redis.call('UNLINK', KEYS[1])
  found = nil
end
local past = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', ms), 'LIMIT', 0, 100)
if #past > 0 then redis.call('ZREM', KEYS[1], unpack(past)) end
local score = ms + ARGV[1]
if found and tonumber(found) >= score then score = tonumber(found) + 1 end
local text = string.format('%.0f', score)
redis.call('ZADD', KEYS[1], text, ARGV[2])
local expiry = score - ms
if redis.call('PTTL', KEYS[1]) < expiry then
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', expiry))
end
return text
