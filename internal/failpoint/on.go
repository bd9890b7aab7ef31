//go:build failpoint

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// The environment variable CDC_FAILPOINT=point:n kills the process with SIGKILL
// the n-th time that it reaches the point.
var target, countdown = parse(os.Getenv("CDC_FAILPOINT"))

func parse(s string) (Point, *atomic.Int64) {
	name, n, _ := strings.Cut(s, ":")
	left := new(atomic.Int64)
	left.Store(1)
	if v, err := strconv.ParseInt(n, 10, 64); err == nil {
		left.Store(v)
	}
	return Point(name), left
}

// Hit kills the process when it is time to.
func Hit(p Point) {
	if p == target && countdown.Add(-1) == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way; nothing may happen after this point
	}
}
