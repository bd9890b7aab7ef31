// Package failpoint names the moments at which tests kill the daemon. In an
// ordinary build every Hit is an empty function; only the build tag failpoint
// gives them teeth.
package failpoint

// Point is a moment between receiving a change and confirming it.
type Point string

// The points, in the order in which a transaction passes them.
const (
	Received     Point = "received"     // WAL is in the buffer, nothing decoded
	Decoded      Point = "decoded"      // a transaction's invalidations are queued
	Taken        Point = "taken"        // a batch left the queue
	Gated        Point = "gated"        // its transactions are visible
	Applied      Point = "applied"      // Redis acknowledged it, no checkpoint yet
	Checkpointed Point = "checkpointed" // the checkpoint is in Redis
	Confirming   Point = "confirming"   // about to tell Postgres
	Confirmed    Point = "confirmed"    // Postgres was told
	Purging      Point = "purging"      // a gap is published, the purge not done
)

// The points that a held invalidation passes, after its transaction was confirmed.
const (
	HeldTaken   Point = "held_taken"   // it is in the taken set
	HeldApplied Point = "held_applied" // Redis acknowledged it
	HeldDone    Point = "held_done"    // it is in no set any more
)

// The points of a family that begins to be followed.
const (
	Stamping      Point = "stamping"       // all that came before is visible, its stamp is not published
	PurgingBehind Point = "purging_behind" // it is, and nothing of what was cached before is removed
)

// CatalogLook is before each look at the catalogs. Tests hold it, so that DDL is
// noticed by the log or not at all.
const CatalogLook Point = "catalog_look"

// Forgetting is when keys that depend on an entity are dealt with, and are still
// registered under it. Only a change of an entity gets there.
const Forgetting Point = "forgetting"

// The points of giving a transaction up.
const (
	SkipPublished Point = "skip_published" // the gap is published, the slot not moved
	SkipAdvanced  Point = "skip_advanced"  // the slot is past it, nothing purged
)

// Points lists those of a transaction.
func Points() []Point {
	return []Point{Received, Decoded, Taken, Gated, Applied, Checkpointed, Confirming, Confirmed, Purging}
}
