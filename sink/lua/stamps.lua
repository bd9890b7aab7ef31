-- stamps.lua: publish the stamps of the families that are followed.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the stamps
-- ARGV[1]  generation, 8 hex digits: the writer's
-- ARGV[2]  replication id of the node that the writer knows; '' = do not check
-- ARGV[3]  revision that the writer takes to be published, 16 hex; '' = none
-- ARGV[4]  revision of this text, 16 hex
-- ARGV[5]  the text; '' = leave it as it is
-- ARGV[6]  purging: the families whose purge is not done, separated by spaces
-- ARGV[7]  sent: nothing above it has been applied, 16 hex; '' = as before
--
-- Returns 'ok', 'node', 'absent' or 'generation' (as checkpoint.lua), or
--         'revision'  another one is published: nothing was written
--
-- Slot: both keys have the slot's hash tag, so one slot.
--
-- Why a script: a reader takes the text that the hash names, and no other. Hash and text
-- change at once, or no reader would have stamps meanwhile. A copy of this call that arrives
-- late finds another revision than the two that it knows, and is refused: a stamp that was
-- withdrawn must not come back. Within a revision families only leave the list of purges; so a
-- longer list is a late one. Why sent: a standby that is not past it does not have what was
-- committed before the families were followed, and which no invalidation will ever tell of.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return 'node'
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation', 'stamps', 'purging', 'sent')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
if h.err or not h[1] then return 'absent' end
if h[1] ~= ARGV[1] then return 'generation' end
local now = h[2] or ''
if now ~= ARGV[3] and now ~= ARGV[4] then return 'revision' end
local set = {'stamps', ARGV[4]}
if now ~= ARGV[4] or #ARGV[6] < #(h[3] or '') then
  set[#set + 1] = 'purging'
  set[#set + 1] = ARGV[6]
end
if ARGV[7] > (h[4] or '') then
  set[#set + 1] = 'sent'
  set[#set + 1] = ARGV[7]
end
-- First, since a server above maxmemory refuses SET and HSET as a script's first write.
redis.call('PERSIST', KEYS[1])
if ARGV[5] ~= '' then redis.call('SET', KEYS[2], ARGV[5]) end
redis.call('HSET', KEYS[1], unpack(set))
return 'ok'
