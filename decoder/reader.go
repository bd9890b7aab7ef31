package decoder

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// FormatError says where in which message the input stopped making sense. It
// quotes no row data.
type FormatError struct {
	Message string // the message's name, as in the protocol's documentation
	Offset  int    // where in the message
	Problem string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("decode pgoutput %s message: at byte %d: %s", e.Message, e.Offset, e.Problem)
}

// reader walks one message. The first failure sticks; every later read returns
// a zero, so that a parser checks once, at its end.
type reader struct {
	name string
	data []byte
	pos  int
	err  *FormatError
}

func (r *reader) fail(problem string) {
	if r.err == nil {
		r.err = &FormatError{Message: r.name, Offset: r.pos, Problem: problem}
	}
}

// need reports whether n more bytes are there. n comes from the wire, so it is
// compared without being added to anything that it could overflow.
func (r *reader) need(n int) bool {
	if r.err != nil {
		return false
	}
	if n < 0 || n > len(r.data)-r.pos {
		r.fail(fmt.Sprintf("needs %d more bytes, has %d", n, len(r.data)-r.pos))
		return false
	}
	return true
}

func (r *reader) byte() byte {
	if !r.need(1) {
		return 0
	}
	b := r.data[r.pos]
	r.pos++
	return b
}

func (r *reader) uint16() uint16 {
	if !r.need(2) {
		return 0
	}
	v := binary.BigEndian.Uint16(r.data[r.pos:])
	r.pos += 2
	return v
}

func (r *reader) uint32() uint32 {
	if !r.need(4) {
		return 0
	}
	v := binary.BigEndian.Uint32(r.data[r.pos:])
	r.pos += 4
	return v
}

func (r *reader) uint64() uint64 {
	if !r.need(8) {
		return 0
	}
	v := binary.BigEndian.Uint64(r.data[r.pos:])
	r.pos += 8
	return v
}

func (r *reader) lsn() lsn.LSN { return lsn.LSN(r.uint64()) }

// microsecondsTo2000 is Postgres's epoch on Unix's scale.
const microsecondsTo2000 = 946684800 * 1_000_000

func (r *reader) time() time.Time {
	return time.UnixMicro(int64(r.uint64()) + microsecondsTo2000).UTC()
}

// bytes returns the next n bytes in place.
func (r *reader) bytes(n uint32) []byte {
	if n > 1<<30 || !r.need(int(n)) {
		r.fail(fmt.Sprintf("length %d is impossible", n))
		return nil
	}
	b := r.data[r.pos : r.pos+int(n) : r.pos+int(n)]
	r.pos += int(n)
	return b
}

// cstring returns the bytes up to the next NUL, in place.
func (r *reader) cstring() []byte {
	if r.err != nil {
		return nil
	}
	i := bytes.IndexByte(r.data[r.pos:], 0)
	if i < 0 {
		r.fail("string without its terminating zero")
		return nil
	}
	b := r.data[r.pos : r.pos+i]
	r.pos += i + 1
	return b
}

func (r *reader) end() error {
	if r.err == nil && r.pos != len(r.data) {
		r.fail(fmt.Sprintf("%d bytes left over", len(r.data)-r.pos))
	}
	if r.err != nil {
		return r.err
	}
	return nil
}
