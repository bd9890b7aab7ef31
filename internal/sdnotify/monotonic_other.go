//go:build !linux

package sdnotify

import (
	"errors"
	"time"
)

func monotonic() (time.Duration, error) {
	return 0, errors.New("systemd's notification protocol needs Linux")
}
