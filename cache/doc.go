// Package cache reads rows through Redis, and never returns one that was replaced longer
// ago than its class allows. It is the reader's half of cdc-invalidator: the daemon reads the
// database's log and removes from Redis what a change has made stale; this package stores
// values in such a way that a removal cannot be missed.
//
//	c, err := cache.Open(ctx, rdb, pool, cache.WithMappings("mappings.yaml"))
//	products, err := cache.Family[Product](c, "product_page")
//	p, err := products.Get(ctx, cache.Vars{"product_id": 7}, loadProduct)
//
// Keys, classes and lifetimes come from the mappings file that the daemon runs with, so that
// both always agree.
//
// # An entry
//
// An entry is one key in Redis. The value, the lease of a reader that is loading it and the
// refresh of one that is under way lie in that one key, so an UNLINK, by the daemon or by
// anybody, removes the value and refuses the fill that is still on its way:
//
//	                 read.lua                          fill.lua, by the holder
//	absent  ---------------------->  lease  ----------------------------->  value: fresh
//	   ^                               |                                      |      |
//	   |  UNLINK, expiry, eviction     |                        time, or the  |      |  read.lua for a
//	   +-------------------------------+---------------------   daemon's soft |      |  refresh: a holder
//	                                                         invalidation     v      v  besides the value
//	                        expired: only while the source is down  <----  stale: served while one refreshes
//
// A miss costs a GET, the lease, the load and the fill. The load runs in a read-only
// transaction, whose snapshot is taken after the lease and recorded in the entry. A hit costs
// one GET.
//
// # What a read may return
//
// What is cached: if the daemon's control hash, as it was known before Redis was asked,
// says that all changes up to some moment are applied, and that moment, at the time of the
// return, is no longer ago than the class's staleness. Where that is in doubt (the
// daemon is away, behind, in a gap, paused) the read goes to the source, unless the class says
// on_doubt: serve.
//
// What was loaded: if its snapshot is no older than the staleness at the time of the return,
// or its fill was accepted, so that nothing had made it stale by then. Otherwise it is loaded
// again, and in the end the answer is ErrTooSlow.
//
// What is older than that: for classes with fail_safe, while the source does not answer.
//
// With AtLeast, only what includes everything committed at the token's moment: an entry
// whose snapshot proves it, or that the daemon would have removed otherwise.
//
// # A crowd
//
// Readers of one key in a process share one flight; of several processes, one has the lease,
// and the others wait for it, for WithWait at most. Values are refreshed by one reader shortly
// before they end, the likelier the longer they take to load, and lifetimes are spread by a
// tenth. Loads are bounded by WithSourceConcurrency, and a breaker keeps them from a source that
// does not answer. All of that bounds what reaches the source; none of it is needed for what
// the values are.
//
// # Without Redis, without the source
//
// When Redis does not answer, reads go to the source within the same bounds, and a breaker
// saves them the wait. When the source does not answer, hits are served for as long as they
// are proved, and then what fail_safe allows; everything else is ErrUnavailable.
//
// The protocol is open to other languages: docs/protocol.md.
package cache
