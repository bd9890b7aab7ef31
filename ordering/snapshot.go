package ordering

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Snapshot is pg_current_snapshot() of the primary: which transactions other
// sessions see. It means nothing on a standby, whose list of running
// transactions is always empty.
type Snapshot struct {
	xmin, xmax uint64
	xip        []uint64 // running, sorted
}

// ParseSnapshot reads xmin:xmax:xip,xip...
func ParseSnapshot(s string) (Snapshot, error) {
	bad := func() (Snapshot, error) {
		return Snapshot{}, fmt.Errorf("snapshot %q: want xmin:xmax:xip_list", s)
	}
	parts := strings.SplitN(s, ":", 3)
	if len(parts) != 3 {
		return bad()
	}
	var sn Snapshot
	var err error
	if sn.xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return bad()
	}
	if sn.xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil || sn.xmax < sn.xmin {
		return bad()
	}
	if parts[2] != "" {
		for _, p := range strings.Split(parts[2], ",") {
			x, err := strconv.ParseUint(p, 10, 64)
			if err != nil {
				return bad()
			}
			sn.xip = append(sn.xip, x)
		}
		slices.Sort(sn.xip)
	}
	return sn, nil
}

// Visible says whether the committed transaction xid is visible in the snapshot.
// The log carries xids without their epoch; xid is taken as the one nearest to
// xmax, which is right for a snapshot that is not old, because Postgres itself never
// lets xids that matter be further apart than half the circle.
func (s *Snapshot) Visible(xid uint32) bool { return s.shows(s.widen(xid)) }

func (s *Snapshot) shows(x uint64) bool {
	if x < s.xmin {
		return true
	}
	if x >= s.xmax {
		return false
	}
	_, running := slices.BinarySearch(s.xip, x)
	return !running
}

func (s *Snapshot) widen(xid uint32) uint64 {
	return s.xmax + uint64(int64(int32(xid-uint32(s.xmax))))
}

// Past says whether every transaction with a lower id than next has ended: what it committed is
// visible in this snapshot, and in all that are taken later. next was given out after they began.
// An earlier snapshot would not do for it: its list of running transactions ends below the
// highest that has *ended*, and leaves those out that were begun after that one.
func (s *Snapshot) Past(next uint64) bool { return s.xmin >= next }

// Running is how many of them have not.
func (s *Snapshot) Running(next uint64) int {
	n, _ := slices.BinarySearch(s.xip, next)
	return n
}
