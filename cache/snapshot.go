package cache

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is pg_current_snapshot() of a primary: it sees each transaction below xmax
// that is not in xip and has committed.
type snapshot struct {
	xmin, xmax uint64
	xip        []uint64 // running, sorted
}

func parseSnapshot(s string) (snapshot, error) {
	bad := func() (snapshot, error) {
		return snapshot{}, fmt.Errorf("snapshot %q: want xmin:xmax:xip,..", s)
	}
	xmin, rest, ok1 := strings.Cut(s, ":")
	xmax, xip, ok2 := strings.Cut(rest, ":")
	if !ok1 || !ok2 {
		return bad()
	}
	var sn snapshot
	var err1, err2 error
	sn.xmin, err1 = strconv.ParseUint(xmin, 10, 64)
	sn.xmax, err2 = strconv.ParseUint(xmax, 10, 64)
	if err1 != nil || err2 != nil || sn.xmax < sn.xmin {
		return bad()
	}
	if xip == "" {
		return sn, nil
	}
	for p := range strings.SplitSeq(xip, ",") {
		x, err := strconv.ParseUint(p, 10, 64)
		if err != nil || x < sn.xmin || x >= sn.xmax {
			return bad()
		}
		sn.xip = append(sn.xip, x)
	}
	slices.Sort(sn.xip)
	return sn, nil
}

func (s *snapshot) String() string {
	b := strconv.AppendUint(nil, s.xmin, 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, s.xmax, 10)
	b = append(b, ':')
	for i, x := range s.xip {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, x, 10)
	}
	return string(b)
}

// contains says whether s sees every transaction that t sees: none of those was still
// to start, or running, when s was taken.
func (s *snapshot) contains(t *snapshot) bool {
	if s.xmax < t.xmax {
		return false
	}
	for _, x := range s.xip {
		if x >= t.xmax {
			break
		}
		if _, running := slices.BinarySearch(t.xip, x); !running {
			return false
		}
	}
	return true
}
