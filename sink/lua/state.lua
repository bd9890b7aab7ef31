-- state.lua: publish the state that readers of critical keys obey.
--
-- KEYS[1]  the control hash
-- ARGV[1]  generation, 8 hex digits: the writer's
-- ARGV[2]  replication id of the node that the writer knows; '' = do not check
-- ARGV[3]  revision of the state, 16 hex: the one read last plus one
-- ARGV[4]  state: ok, catching_up or gap
-- ARGV[5]  reason, for people
-- ARGV[6]  since: microseconds since 1970, 16 hex
-- ARGV[7]  writer: a nonce of the process, so that whoever kept the hash before knows another one
--
-- Returns 'ok', 'node', 'absent' or 'generation' (as checkpoint.lua), or
--         'revision'  another state was published since: nothing was written
--
-- Slot: one key, so one slot.
--
-- Why a script: an `ok` whose reply was lost must not arrive after the `gap`
-- that was published next. It carries the lower revision and is refused.
if ARGV[2] ~= '' then
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then
    return 'node'
  end
end
local h = redis.pcall('HMGET', KEYS[1], 'generation', 'state_revision', 'state', 'reason')
if h.err and not string.find(h.err, 'WRONGTYPE', 1, true) then return h end
if h.err or not h[1] then return 'absent' end
if h[1] ~= ARGV[1] then return 'generation' end
local revision = h[2] or ''
if ARGV[3] == revision and ARGV[4] == h[3] and ARGV[5] == h[4] then return 'ok' end
if ARGV[3] <= revision then return 'revision' end
-- First, since a server above maxmemory refuses HSET as a script's first write.
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'state_revision', ARGV[3], 'state', ARGV[4], 'reason', ARGV[5], 'state_since', ARGV[6], 'writer', ARGV[7])
return 'ok'
