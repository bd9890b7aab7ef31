-- read.lua: a reader that found nothing to serve, or something stale, asks who loads.
--
-- KEYS[1]  the data key
-- ARGV[1]  token: 16 lower-case hex digits, random, never all 0, of this attempt alone
-- ARGV[2]  lease: how long the caller may take, ms, decimal
-- ARGV[3]  mode: 'read', or 'refresh': wants to load although the value may be fresh
-- ARGV[4]  stamp of the family, 16 hex, that the caller knew before; '' = takes any
--
-- An entry is one string: 73 bytes of header, then (of values) more fields up to a
-- newline and the payload. Positions from 1:
--    1..4  'cdc2'         5  L lease, V value, N the row is known not to be there
--    6..21 holder: token of who loads or refreshes, 16 '0' for nobody
--   22..33 the holder's deadline   34..45 fresh until   46..57 stale until
--   58..73 stamp of the family when the lease was taken, 16 '0' where none was known
-- Times are ms since 1970 by this server's clock, 12 lower-case hex digits, so that
-- they compare as strings. A holder whose deadline has passed is nobody.
--
-- Returns {'lease'}            nothing was there: the caller is to load, and may fill
--                              (also when the lease has this token already: a resent call)
--         {'wait', ms}         another one's lease, with the ms that are left of it
--         {'value', entry}     fresh; in mode refresh: somebody else is refreshing it
--         {'refresh', entry}   the caller is to load, and may fill; the entry may be
--                              served meanwhile
--         {'stale', entry}     may be served; somebody else is refreshing it
--         {'expired', entry}   may not be served: the caller is to load, and may fill
--         {'held', entry, ms}  may not be served; somebody else loads, ms are left
--
-- Slot: one key, so one slot.
--
-- Why it holds: the lease lies in the key that an invalidation unlinks, so there is
-- no moment in which one is there without the other. The caller opens its snapshot
-- after this call; an invalidation that its snapshot may miss is applied later still, and
-- takes the token away, which fill.lua looks for. A token is good for one attempt at
-- this call: a copy of the call that was delayed on its way, and runs after that
-- invalidation, would else give the token back. Whoever sends again takes a new token.
-- What is not an entry (another type, another program's value) is replaced.
--
-- Why the stamp: the daemon follows the family since the stamp was published, and what had
-- been committed before was visible then. The caller knew it before this call, so its
-- snapshot has all of that, and what it misses is followed. Of an entry with another stamp
-- neither is known, whatever its kind: it counts as absent, and a lease with it, whose fill
-- nobody with this stamp would believe. fill.lua keeps the stamp that is written here.
-- A caller who is behind takes a lease from one who is not; it costs a load, until its
-- next look.
local cur = redis.pcall('GET', KEYS[1])
if type(cur) == 'table' then
  if not string.find(cur.err, 'WRONGTYPE', 1, true) then return cur end
  cur = nil
end
local kind = cur and #cur >= 73 and string.match(cur, '^cdc2([LVN])')
if kind and string.find(string.sub(cur, 6, 73), '[^0-9a-f]') then kind = nil end
if kind and kind ~= 'L' and not string.find(cur, '\n', 74, true) then kind = nil end
if kind and ARGV[4] ~= '' and string.sub(cur, 58, 73) ~= ARGV[4] then kind = nil end

local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%012x', ms)
local deadline = string.format('%012x', ms + ARGV[2])

local holder, held, left
if kind then
  holder = string.sub(cur, 6, 21)
  local until_ = string.sub(cur, 22, 33)
  held = until_ > now and holder ~= '0000000000000000' and holder ~= ARGV[1]
  left = held and tonumber(until_, 16) - ms
end

if kind == 'L' and held then return {'wait', left} end
if kind == 'L' and holder == ARGV[1] then return {'lease'} end
if kind == 'L' or not kind then
  redis.call('SET', KEYS[1], 'cdc2L' .. ARGV[1] .. deadline .. '000000000000000000000000'
    .. (ARGV[4] ~= '' and ARGV[4] or '0000000000000000'), 'PX', ARGV[2])
  return {'lease'}
end

local fresh = string.sub(cur, 34, 45) > now
local stale = string.sub(cur, 46, 57) > now
if fresh and (held or ARGV[3] == 'read') then return {'value', cur} end
if held then
  if stale then return {'stale', cur} end
  return {'held', cur, left}
end
-- SETRANGE leaves the key's expiry as it is.
redis.call('SETRANGE', KEYS[1], 5, ARGV[1] .. deadline)
if fresh or stale then return {'refresh', cur} end
return {'expired', cur}
