// Package sink applies batches of invalidations to Redis: a server, a sentinel
// group or a cluster.
//
// # Guarantees
//
//   - A batch counts as applied only when the reply to each of its commands was
//     read and is no error. Everything else is an error, after which the whole
//     batch is resent; deletes are idempotent, and what is not compares positions
//     where it is written (lua/*.lua).
//   - A position is stored only after everything at or below it was acknowledged,
//     on the same node and after it, so a promoted replica's own control hash says
//     what that replica has.
//   - Nothing goes to a connection that leads to another process, another history
//     or a replica; see guard. ErrNodeChanged is sticky until Attach.
//   - Purges may remove too much, never too little.
//
// # What each failure means
//
//	no reply, timeout        unknown whether applied: resend
//	NOSCRIPT                 scripts flushed: loaded, batch sent again
//	control hash absent,     flushed or evicted: written again from memory, batch
//	 same node               sent again. A flush took the old values with it
//	run id changed           restarted, perhaps from an old snapshot: ErrNodeChanged
//	replication id changed   promoted, or demoted and promoted: ErrNodeChanged
//	READONLY                 demoted: ErrNodeChanged
//	MOVED, CLUSTERDOWN       topology read again; a new primary: ErrNodeChanged
//	ASK                      followed
//	OOM                      deletes and positions still work: scripts write
//	                         nothing before something that the server always takes
//	NOPERM, WRONGPASS, ...   error with the fix in it; resent like any other
//
// # Late commands
//
// A command whose reply was lost may run much later, after its writer went on.
// Deletes do no harm then. Positions, states and generations are refused by the
// scripts, since a newer one is in place.
package sink
