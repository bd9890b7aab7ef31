package cache

import (
	"errors"
	"fmt"
)

// ErrNotFound is what a loader returns when there is no such row. It is remembered as a
// negative entry, for the family's negative_ttl, and Get returns it.
var ErrNotFound = errors.New("cache: not found")

// ErrUnavailable is in every error that is about the source not answering: it is
// down, or too many reads are under way.
var ErrUnavailable = errors.New("cache: the source is unavailable")

// ErrTooSlow is returned when loading takes longer than the class's staleness, so that what
// was loaded may be older than allowed, several times in a row. A faster query, or a larger
// budget, mends it.
var ErrTooSlow = errors.New("cache: loading takes longer than the class's staleness")

// ErrClosed is returned by reads after Close.
var ErrClosed = errors.New("cache: the client is closed")

// ErrTokenAhead is returned when a value loaded after the call does not have what the
// token stands for: the token is of another database, or the primary was replaced
// by one that has lost it.
var ErrTokenAhead = errors.New("cache: the source does not have what the token stands for")

// errNested is returned by reads inside a loader.
var errNested = errors.New("cache: a read inside a loader: what it returns may be older than the loader's snapshot, and nothing would invalidate what is made of it: read with the loader's transaction")

// unavailable marks an error as one of the source not answering.
func unavailable(doing string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, doing, err)
}
