// Package ordering holds invalidations between the log and Redis: it coalesces
// them into batches, decides when a batch may be applied, and when a position
// may be confirmed.
//
//	receiver goroutine            applier goroutine
//	Begin, Add, Commit --> Queue --> Take --> Gate.Wait --> (sink) --> Window.Add
//
// Deletes commute and are idempotent, so inside a batch their order is free and
// duplicates merge. What does not commute (version keys, checkpoints) carries a
// position and only ever moves forward.
//
// Invariants that the rest depends on:
//   - A batch's Position covers only transactions that are wholly in this batch or
//     in batches taken before it. Applying batches in order and then
//     storing that position never claims too much.
//   - An entry is applied only after a snapshot, taken on an ordinary
//     connection, shows its transaction: the walsender delivers a commit before other
//     sessions see it, and a reader that missed in between would fill the old row back.
//   - Nothing is dropped to keep within bounds: a full queue makes the receiver wait.
package ordering
