//go:build failpoint

package failpoint

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// The environment variable CDC_FAILPOINT=point:n kills the process with SIGKILL
// the n-th time that it reaches the point.
var target, countdown = parse(os.Getenv("CDC_FAILPOINT"))

// The environment variable CDC_FAILPOINT_HOLD=point:n makes every Hold of the point
// wait from the n-th on.
var heldPoint, heldCountdown = parse(os.Getenv("CDC_FAILPOINT_HOLD"))

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

// Hold waits for the end of ctx when it is told to.
func Hold(ctx context.Context, p Point) {
	if p == heldPoint && heldCountdown.Add(-1) <= 0 {
		<-ctx.Done()
	}
}
