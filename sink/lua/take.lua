-- take.lua: take held invalidations that are due, to be applied now.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the held set of a class: '<op> <family> <key>', scored by deadline
-- KEYS[3]  its taken set: '<take> <op> <family> <key>', scored by deadline, or, once
--          applied and kept for a replay, by the negative time of that
-- ARGV[1]  generation, 8 hex digits: the caller's
-- ARGV[2]  replication id of the node that the caller knows; '' = do not check
-- ARGV[3]  nonce of the sets' sentinels
-- ARGV[4]  take: 16 hex digits that no other call ever has
-- ARGV[5]  first score of the taken set that counts as not applied: 0, or, for a replay,
--          the negative time of its beginning
-- ARGV[6]  highest deadline that is due; '(+inf' = everything
-- ARGV[7]  how many to take, at most 200, since a script holds up every other client
-- ARGV[8]  negative time: what was applied before it is kept no longer; '' = all stays
--
-- Returns {'ok', number left in the held set, deadlines of the first and of the last of
--          them or '', member of the taken set, its score, member, score, ...}
--         {'lost'}  a set has not its sentinel: it was evicted. Nothing was written
--         {'node'}, {'absent'} or {'generation'} (as checkpoint.lua)
--
-- Slot: all keys have the slot's hash tag, so one slot.
--
-- Why: what was taken and not applied comes first, and nothing else with it. So a call
-- whose reply was lost, a crash between take and removal, and a late call of a process
-- that has been superseded leave nothing behind: the next call hands it out. What is
-- put in again after it was taken is a member of the held set of its own. Times are
-- milliseconds since 1970, which Lua's numbers hold exactly.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return {'node'}
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
if h.err or not h[1] then return {'absent'} end
if h[1] ~= ARGV[1] then return {'generation'} end
for i = 2, 3 do
  local score = redis.pcall('ZSCORE', KEYS[i], '! ' .. ARGV[3])
  if type(score) == 'table' and not string.find(score.err, 'WRONGTYPE', 1, true) then return score end
  if type(score) ~= 'string' then return {'lost'} end
end
if ARGV[8] ~= '' then
  local old = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[8], '(0', 'LIMIT', 0, 200)
  if #old > 0 then redis.call('ZREM', KEYS[3], unpack(old)) end
end
local found = redis.call('ZRANGEBYSCORE', KEYS[3], ARGV[5], '(+inf', 'WITHSCORES', 'LIMIT', 0, 200)
local n = tonumber(ARGV[7])
if #found == 0 and n > 0 then
  found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[6], 'WITHSCORES', 'LIMIT', 0, n)
  local gone, taken = {}, {}
  for i = 1, #found, 2 do
    gone[#gone + 1] = found[i]
    found[i] = ARGV[4] .. ' ' .. found[i]
    taken[#taken + 1] = found[i + 1]
    taken[#taken + 1] = found[i]
  end
  if #gone > 0 then
    -- In this order, since a server above maxmemory refuses ZADD as a script's first
    -- write. Both keys are sorted sets, as their sentinels say, so it cannot fail.
    redis.call('ZREM', KEYS[2], unpack(gone))
    redis.call('ZADD', KEYS[3], unpack(taken))
  end
end
local first = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local last = redis.call('ZREVRANGE', KEYS[2], 1, 1, 'WITHSCORES') -- behind it is the sentinel
local out = {'ok', redis.call('ZCOUNT', KEYS[2], '-inf', '(+inf'), first[2] or '', last[2] or ''}
for i = 1, #found do out[4 + i] = found[i] end
return out
