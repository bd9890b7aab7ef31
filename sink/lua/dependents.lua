-- dependents.lua: forget dependents of an entity that have been dealt with.
--
-- KEYS[1]  the entity's set of dependents
-- ARGV     score, member, score, member, ...: as they were read
--
-- Returns the number of members that were removed.
--
-- Slot: one key, so one slot. At most 50 members, since a script holds up every other
-- client.
--
-- Why it holds: each registration raises the score (register.lua). A member whose score
-- is another one by now was registered again, perhaps after its key was removed, and the
-- next change of the entity needs it. Scores are compared as text, as the server prints
-- them both times.
local removed = 0
for i = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i + 1]) == ARGV[i] then
    removed = removed + redis.call('ZREM', KEYS[1], ARGV[i + 1])
  end
end
return removed
