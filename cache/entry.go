package cache

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// The form of what is under a data key; lua/read.lua and docs/protocol.md describe it.
const (
	entryMagic  = "cdc2"
	headerLen   = 73
	kindAt      = 4
	freshAt     = 33
	staleAt     = 45
	stampAt     = 57
	timeLen     = 12
	kindLease   = 'L'
	kindValue   = 'V'
	kindMissing = 'N'
	noSnapshot  = "-" // of a load on a standby: its snapshots say nothing
	hexDigits   = "0123456789abcdef"
)

// entry is what a key holds, not copied: its strings are parts of what Redis sent.
type entry struct {
	kind       byte
	freshUntil int64  // ms since 1970 by Redis' clock; 0: marked stale by an invalidation
	staleUntil int64  // the same
	stamp      string // of the family when its lease was taken
	fields     string // variable fields
	payload    string
}

// parseEntry reads a value, a negative entry or a lease. What is none of them is to be
// taken for absent.
func parseEntry(raw string) (e entry, ok bool) {
	if len(raw) < headerLen || raw[:kindAt] != entryMagic {
		return entry{}, false
	}
	e.kind, e.stamp = raw[kindAt], raw[stampAt:headerLen]
	var ok1, ok2 bool
	e.freshUntil, ok1 = parseMillis(raw[freshAt : freshAt+timeLen])
	e.staleUntil, ok2 = parseMillis(raw[staleAt : staleAt+timeLen])
	if !ok1 || !ok2 {
		return entry{}, false
	}
	switch e.kind {
	case kindLease:
		return e, true
	case kindValue, kindMissing:
		rest := raw[headerLen:]
		end := strings.IndexByte(rest, '\n')
		if end < 0 {
			return entry{}, false
		}
		e.fields, e.payload = rest[:end], rest[end+1:]
		return e, true
	}
	return entry{}, false
}

func parseMillis(s string) (v int64, ok bool) {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			v = v<<4 | int64(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | int64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

// entryMeta is what a reader needs to know of an entry beside its value.
type entryMeta struct {
	negative   bool
	freshUntil int64   // ms since 1970 by Redis' clock; 0: marked stale by an invalidation
	staleUntil int64   // the same
	loadedAt   int64   // ms since 1970
	loadTime   int64   // ms
	lsn        lsn.LSN // replay position of a load on a standby
	snapshot   string  // xmin:xmax:xip,.. of a load on a primary, or "-"
}

// meta reads the variable fields. Its strings are copies: they outlive the payload.
func (e *entry) meta() (entryMeta, error) {
	m := entryMeta{negative: e.kind == kindMissing, freshUntil: e.freshUntil, staleUntil: e.staleUntil}
	var f [4]string
	rest := e.fields
	for i := range f {
		if !strings.HasPrefix(rest, " ") {
			return entryMeta{}, fmt.Errorf("an entry's header has %d of 4 fields", i)
		}
		f[i], rest = rest[1:], ""
		if end := strings.IndexByte(f[i], ' '); end >= 0 { // more fields may follow, of later versions
			f[i], rest = f[i][:end], f[i][end:]
		}
	}
	var ok bool
	if m.loadedAt, ok = parseMillis(f[0]); !ok || len(f[0]) != timeLen {
		return entryMeta{}, fmt.Errorf("an entry's header: loaded at is not %d hexadecimal digits", timeLen)
	}
	var err error
	if m.loadTime, err = strconv.ParseInt(f[1], 10, 64); err != nil || m.loadTime < 0 {
		return entryMeta{}, fmt.Errorf("an entry's header: the load time is no number")
	}
	if m.lsn, err = lsn.ParseHex(f[2]); err != nil {
		return entryMeta{}, fmt.Errorf("an entry's header: %w", err)
	}
	m.snapshot = strings.Clone(f[3])
	return m, nil
}

// loadTime reads the one field that each hit looks at; 0 when it cannot be read.
func (e *entry) loadTime() (ms int64) {
	const at = 1 + timeLen + 1
	for i := at; i < len(e.fields) && e.fields[i] >= '0' && e.fields[i] <= '9'; i++ {
		ms = ms*10 + int64(e.fields[i]-'0')
	}
	return ms
}

// appendRest appends what fill.lua stores behind the header.
func appendRest(dst []byte, m *entryMeta, payload []byte) []byte {
	dst = append(dst, ' ')
	dst = appendMillis(dst, m.loadedAt)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, m.loadTime, 10)
	dst = append(dst, ' ')
	dst = append(dst, m.lsn.Hex()...)
	dst = append(dst, ' ')
	dst = append(dst, m.snapshot...)
	dst = append(dst, '\n')
	return append(dst, payload...)
}

func appendMillis(dst []byte, ms int64) []byte {
	for shift := 4 * (timeLen - 1); shift >= 0; shift -= 4 {
		dst = append(dst, hexDigits[ms>>shift&0xf])
	}
	return dst
}

// freshness of an entry at a time by Redis' clock.
type freshness int

const (
	fresh   freshness = iota
	stale             // may be served while somebody refreshes it
	expired           // may be served only while the source is down
)

func (e *entry) at(ms int64) freshness {
	switch {
	case e.freshUntil > ms:
		return fresh
	case e.staleUntil > ms:
		return stale
	}
	return expired
}

func millisOf(t time.Time) int64 { return t.UnixMilli() }
