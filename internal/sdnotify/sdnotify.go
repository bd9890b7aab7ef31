// Package sdnotify tells a service manager that speaks systemd's notification protocol
// what the daemon is doing: datagrams of NAME=value lines to the socket that
// NOTIFY_SOCKET names. Where that is not set every call does nothing.
package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Notifier sends notifications. A nil Notifier sends none.
type Notifier struct {
	conn     *net.UnixConn
	watchdog time.Duration
}

// FromEnvironment is the Notifier for this process; nil when nobody wants to be told.
func FromEnvironment() (*Notifier, error) { return newNotifier(os.Getenv, os.Getpid()) }

func newNotifier(getenv func(string) string, pid int) (*Notifier, error) {
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	// A leading @ is an abstract socket, for package net as well.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("reach the service manager at NOTIFY_SOCKET=%s: %w", path, err)
	}
	n := &Notifier{conn: conn}
	// Meant for another process of the service when WATCHDOG_PID says so.
	if p := getenv("WATCHDOG_PID"); p == "" || p == strconv.Itoa(pid) {
		if us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
			n.watchdog = time.Duration(us) * time.Microsecond
		}
	}
	return n, nil
}

// Close releases the socket.
func (n *Notifier) Close() error {
	if n == nil {
		return nil
	}
	return n.conn.Close()
}

// Watchdog is how often Alive must be called at least, or the manager restarts the
// service; 0 when it does not watch.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

// Ready says that the service does its work; also that a reload is over.
func (n *Notifier) Ready(status string) error { return n.send("READY=1", "STATUS="+oneLine(status)) }

// Reloading says that a reload begins. Ready ends it.
func (n *Notifier) Reloading() error {
	if n == nil {
		return nil
	}
	now, err := monotonic()
	if err != nil {
		return fmt.Errorf("tell the service manager of a reload: %w", err)
	}
	// The time tells the manager that this answers its own request and no earlier one.
	return n.send("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(now.Microseconds(), 10))
}

// Stopping says that the service ends.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1", "STATUS=stopping") }

// Status is one line for people.
func (n *Notifier) Status(text string) error { return n.send("STATUS=" + oneLine(text)) }

// Alive feeds the watchdog.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1") }

func (n *Notifier) send(lines ...string) error {
	if n == nil {
		return nil
	}
	if _, err := n.conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager %s: %w", strings.SplitN(lines[0], "=", 2)[0], err)
	}
	return nil
}

// oneLine keeps a text from becoming further assignments.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }
