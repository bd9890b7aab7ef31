package cache

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot says which transactions were visible at a moment on a primary: those below
// xmin, and of those below xmax all but the ones that were in progress. It is what
// pg_current_snapshot() prints. On a hot standby it proves nothing.
type snapshot struct {
	xmin, xmax uint64
	inProgress []uint64 // sorted, all in [xmin, xmax)
}

// parseSnapshot reads xmin:xmax:xip,xip.
func parseSnapshot(text string) (snapshot, error) {
	bad := func() (snapshot, error) { return snapshot{}, fmt.Errorf("%q is no snapshot", text) }
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return bad()
	}
	var s snapshot
	var err1, err2 error
	s.xmin, err1 = strconv.ParseUint(parts[0], 10, 64)
	s.xmax, err2 = strconv.ParseUint(parts[1], 10, 64)
	if err1 != nil || err2 != nil || s.xmin > s.xmax {
		return bad()
	}
	if parts[2] == "" {
		return s, nil
	}
	last := uint64(0)
	for xip := range strings.SplitSeq(parts[2], ",") {
		id, err := strconv.ParseUint(xip, 10, 64)
		if err != nil || id < s.xmin || id >= s.xmax || len(s.inProgress) > 0 && id <= last {
			return bad()
		}
		s.inProgress, last = append(s.inProgress, id), id
	}
	return s, nil
}

// shows says whether a transaction that has committed was visible.
func (s *snapshot) shows(xid uint64) bool {
	if xid < s.xmin {
		return true
	}
	_, inProgress := slices.BinarySearch(s.inProgress, xid)
	return xid < s.xmax && !inProgress
}

// contains says whether everything that was visible in t is visible in s. A transaction
// that began after t counts for nothing; one that t saw as in progress may be
// in progress still.
func (s *snapshot) contains(t *snapshot) bool {
	if s.xmax < t.xmax {
		return false // an id between the two may be of one that t shows
	}
	for _, xid := range s.inProgress {
		if xid < t.xmax && t.shows(xid) {
			return false
		}
	}
	return true
}
