package replication

import (
	"time"

	"golang.org/x/sys/unix"
)

// pause sleeps in the kernel: the runtime's own timers are as coarse as the
// timeout of epoll_wait, a millisecond. A signal may cut it short, which does no harm.
func pause(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil)
}
