package mapping

// What lies in Redis beside the cached values, and that the daemon and readers have to
// find under the same names. prefix is redis.prefix.

// ControlKey is the key of a slot's control hash. The braces are part of it: a hash tag,
// so that whatever else belongs to the slot can be in its cluster slot.
func ControlKey(prefix, slot string) string { return prefix + "source:{" + slot + "}" }

// MarkKey is the key of the mark that a slot has on a primary of a cluster. tag is in a
// cluster slot of that primary.
func MarkKey(prefix, slot, tag string) string { return prefix + "mark:" + slot + ":{" + tag + "}" }

// StreamKey is the key of a slot's invalidation stream. It is in the cluster slot of the
// control hash.
func StreamKey(prefix, slot string) string { return prefix + "stream:{" + slot + "}" }

// StuckKey is where the daemon says which transaction it cannot read, and SkipKey where
// somebody asks it to give that one up.
func StuckKey(prefix, slot string) string { return prefix + "stuck:{" + slot + "}" }

// SkipKey is described with StuckKey.
func SkipKey(prefix, slot string) string { return prefix + "skip:{" + slot + "}" }

// StampsKey is the key of the stamps of the families that a slot's daemon follows. It is in the
// cluster slot of the control hash.
func StampsKey(prefix, slot string) string { return prefix + "stamps:{" + slot + "}" }

// DependentsKey is the key of the set of what depends on an entity.
func DependentsKey(prefix, entity string) string { return prefix + "dep:" + entity }
