-- publish.lua: append messages to a slot's invalidation stream.
--
-- KEYS[1]  the stream
-- ARGV[1]  replication id that the batches were applied under
-- ARGV[2]  how many messages are kept, about
-- ARGV[3]  session: names the writer's uninterrupted run, 16 hex
-- then for each message, oldest first:
--   n  its number in the session, 16 hex
--   f  fresh_as_of: nothing visible then is missing here and before, 16 hex, 0 = not known
--   p  '1' = everything was removed, '' = what k says
--   k  keys that were removed, marked or moved, separated by newlines; '' = none
--
-- Returns 'ok'    all messages are there, in this order and next to each other
--         'node'  the node's history is another one: nothing was written
--
-- Slot: one key, so one slot; its tag is the control hash's.
--
-- Why a script: f is a promise like a checkpoint, so it must not be written to a node that was
-- demoted, synchronised from another one and promoted again, and may have lost the
-- removals (checkpoint.lua). A call whose reply was lost may run late, or twice over with
-- the one that follows it. That one is of another session, so whoever reads sees the
-- break on either side and drops all it has; nothing here has to be refused.
local info = redis.pcall('INFO', 'replication')
if type(info) == 'string' and not string.find(info, 'master_replid:' .. ARGV[1], 1, true) then
  return 'node'
end
-- A server above maxmemory refuses XADD as a script's first write, and takes it
-- after any other. The length is bounded, and it must never expire anyway.
redis.call('PERSIST', KEYS[1])
for i = 4, #ARGV, 4 do
  local message = {'XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 's', ARGV[3], 'n', ARGV[i], 'f', ARGV[i + 1]}
  if ARGV[i + 2] ~= '' then
    message[#message + 1] = 'p'
    message[#message + 1] = ARGV[i + 2]
  end
  if ARGV[i + 3] ~= '' then
    message[#message + 1] = 'k'
    message[#message + 1] = ARGV[i + 3]
  end
  local added = redis.pcall(unpack(message))
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'WRONGTYPE', 1, true) then return added end
    redis.call('UNLINK', KEYS[1])
    redis.call(unpack(message))
  end
end
return 'ok'
