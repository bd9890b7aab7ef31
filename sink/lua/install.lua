-- install.lua: write a whole control hash: a new generation, or one that was
-- flushed or evicted.
--
-- KEYS[1]   the control hash
-- ARGV[1]   generation, 8 hex digits
-- ARGV[2]   replication id of the node that the fields are true of; '' = do not check
-- ARGV[3]   writer: a nonce of the process, so that it knows its own write again
-- ARGV[4]   what it may replace of this generation or a later one, by this writer or another:
--           '=' and the state_revision that was found there; '' = nothing
-- ARGV[5..] field, value, ...: everything the hash is to hold
--
-- Returns 'ok'          the hash is as asked for (or moved on since, by this writer)
--         'node'        the node's history is another one: nothing was written
--         'generation'  it belongs to a later generation, or to another writer of
--                       the same one: nothing was written
--
-- Slot: one key, so one slot.
--
-- What is replaced was spoilt by hand; what is written has another revision, so that a late
-- copy replaces nothing.
--
-- Why a script: the comparison refuses a late copy of this command after the
-- generation has moved on, which would take the positions back; and a hash that is absent because
-- the node took its data from another one must not be written from memory.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return 'node'
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation', 'writer', 'state_revision')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
local replaces = not h.err and '=' .. (h[3] or '') == ARGV[4]
if not h.err and not replaces and h[1] and #h[1] == #ARGV[1] then
  if h[1] > ARGV[1] then return 'generation' end
  if h[1] == ARGV[1] then
    if h[2] == ARGV[3] then return 'ok' end
    return 'generation'
  end
end
-- First, since a server above maxmemory refuses HSET as a script's first write;
-- and it mends a key of another type.
redis.call('UNLINK', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
return 'ok'
