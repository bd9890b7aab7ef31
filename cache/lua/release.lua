-- release.lua: give up a load that will not fill.
--
-- KEYS[1]  the data key
-- ARGV[1]  token that read.lua gave the load to
-- ARGV[2]  'drop' to remove the value too; otherwise a value that was to be refreshed stays
--
-- Returns 1  a lease is removed, or a value has no holder any more (or is removed)
--         0  the key is not the caller's any more
--
-- Slot: one key, so one slot.
--
-- Why a script: between a GET and an UNLINK the key may have become somebody else's.
-- The fields are described in read.lua.
local cur = redis.pcall('GETRANGE', KEYS[1], 0, 72)
if type(cur) == 'table' then
  if not string.find(cur.err, 'WRONGTYPE', 1, true) then return cur end
  return 0
end
if string.sub(cur, 1, 4) ~= 'cdc2' or string.sub(cur, 6, 21) ~= ARGV[1] then return 0 end
if string.sub(cur, 5, 5) == 'L' or ARGV[2] == 'drop' then
  redis.call('UNLINK', KEYS[1])
else
  redis.call('SETRANGE', KEYS[1], 5, '0000000000000000000000000000')
end
return 1
