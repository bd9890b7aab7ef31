-- soft.lua: mark values as stale, and take the right to fill from whoever loads them.
--
-- KEYS[i]    a data key
-- ARGV[1]    fail_safe: how much longer a value is kept for when the source is down, ms
-- ARGV[1+i]  how long KEYS[i] may still be served, ms; 0 for not any more
--
-- Returns the number of values that were marked; whatever else was there is removed.
--
-- Slot: all keys of a call must be in one; the caller sends one key a call in a
-- cluster. At most 100 keys, since a script holds up every other client.
--
-- An entry is described in docs/protocol.md: kind in byte 5, holder 6..21, the holder's
-- deadline 22..33, fresh until 34..45, stale until 46..57, stamp 58..73.
--
-- Why it holds: a lease is removed, and a value's holder with it, as UNLINK would do. No
-- clock calls a value fresh whose time is 0. Neither time is ever moved forward, so a
-- value that is marked twice is not served for longer, and a resent call changes nothing.
-- That a row is not there is never served stale: an insert would be seen too late by
-- those who wait for it. What cannot be written (a server above maxmemory) is removed.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local marked = 0
for i, key in ipairs(KEYS) do
  local serve = tonumber(ARGV[1 + i])
  local keep = serve + ARGV[1]
  local header = redis.pcall('GETRANGE', key, 0, 72)
  local done = false
  if type(header) == 'table' and not string.find(header.err, 'WRONGTYPE', 1, true) then return header end
  if keep > 0 and type(header) == 'string' and string.sub(header, 1, 5) == 'cdc2V' and #header == 73 then
    local stale = string.format('%012x', now + serve)
    if string.sub(header, 46, 57) < stale then stale = string.sub(header, 46, 57) end
    local left = redis.call('PTTL', key)
    local written = redis.pcall('SETRANGE', key, 5, '0000000000000000000000000000000000000000' .. stale)
    done = type(written) == 'number'
    if not done and not string.find(written.err, 'OOM', 1, true) then return written end
    if done and (left < 0 or left > keep) then redis.call('PEXPIRE', key, keep) end
    if done then marked = marked + 1 end
  end
  if not done then redis.call('UNLINK', key) end
end
return marked
