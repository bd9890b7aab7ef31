// Package protocol has the cases that every reader of the cache has to pass, in any
// language: docs/protocol.md as scenarios. They are run with the Go library and with the
// Python reader of docs/python, in all pairs, on the same keys; the daemon's side is played by
// its scripts.
package protocol
