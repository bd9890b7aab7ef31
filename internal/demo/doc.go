// Package demo shows the real pipeline at work on servers of its own, and proves the
// result: at the end every cached value is compared with its row.
//
// A small shop (users, products, sellers, stock, carts) is read through a cache by
// readers and changed by writers, some of them hostile: multi-row updates, key
// changes, cascades, deletes, rollbacks, COPY, TRUNCATE. Nothing of what the writers do
// knows of the cache. The daemon runs in this process with the project's example
// mappings, as `run` would start it.
//
// The same readers maintain each entry a second time under a prefix that no
// mapping knows. That copy shows what the same run looks like without
// invalidation.
//
// # Why zero is provable
//
// An invalidation alone does not make a cache right: a reader that read the old row
// before the change can still store it after the key was deleted. So the readers
// here take a lease in the data key itself before they load, and store only if that
// lease is still there (cache.go). A deleted key takes the lease with it, and the late
// fill is refused. The daemon in turn deletes only what is visible to new snapshots.
// So when the writers have stopped and the daemon has applied everything, each value
// in the cache was read after the last change of its row.
package demo
