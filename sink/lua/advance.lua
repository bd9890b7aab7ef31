-- advance.lua: move version keys forward, never back and never to a value that
-- they have had before.
--
-- KEYS[i]    a version key
-- ARGV[1]    stream, 16 hex digits: generation (8), then a hash of the stream (8)
-- ARGV[1+i]  commit LSN for KEYS[i], 16 hex
--
-- A version is 40 hex digits: stream (16), commit LSN (16), counter (8).
--
-- Returns the number of keys that were moved.
--
-- Slot: all keys of a call must be in one; the caller sends one key a call in a
-- cluster. At most 100 keys, since a script holds up every other client.
--
-- Why: within a stream a resent batch changes nothing. Positions of two streams
-- do not compare (a second slot that bumps the same key, a process of an earlier
-- generation), so the lower stream counts up what it finds instead: one bump too
-- many is allowed, a change that leaves the version as it was is not.
local moved = 0
for i, key in ipairs(KEYS) do
  -- pcall: a key of another type must not stop the pipeline for good. Any other
  -- error must: to take it for an absent key could take the version back.
  local cur = redis.pcall('GET', key)
  if type(cur) == 'table' and not string.find(cur.err, 'WRONGTYPE', 1, true) then return cur end
  if type(cur) ~= 'string' or #cur ~= 40 or string.find(cur, '[^0-9a-f]') then cur = '' end
  local stream, lsn = string.sub(cur, 1, 16), ARGV[1 + i]
  local new
  if ARGV[1] > stream or ARGV[1] == stream and lsn > string.sub(cur, 17, 32) then
    new = ARGV[1] .. lsn .. '00000000'
  elseif ARGV[1] < stream then
    new = string.sub(cur, 1, 32) .. string.format('%08x', tonumber(string.sub(cur, 33), 16) + 1)
    if #new ~= 40 then return redis.error_reply('ERR the counter of a version key is exhausted') end
  end
  if new then
    -- A server above maxmemory refuses SET as a script's first write, and takes it
    -- after an UNLINK.
    if moved == 0 then redis.call('UNLINK', key) end
    redis.call('SET', key, new)
    moved = moved + 1
  end
end
return moved
