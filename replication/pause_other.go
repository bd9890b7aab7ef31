//go:build !linux

package replication

import "time"

func pause(d time.Duration) { time.Sleep(d) }
