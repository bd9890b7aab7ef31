package replication

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Lengths on the wire: a backend message is a type byte and a length that
// counts itself; inside CopyData stand XLogData or a keepalive.
const (
	headerLen    = 5
	xlogDataLen  = 1 + 8 + 8 + 8
	keepaliveLen = 1 + 8 + 8 + 1
	statusLen    = headerLen + 1 + 8 + 8 + 8 + 8 + 1
)

// maxMessage is the largest message that Postgres can build (a StringInfo).
const maxMessage = 1 << 30

// postgresEpochMicros is 2000-01-01 on Unix's scale.
const postgresEpochMicros = 946684800 * 1_000_000

// encodeStatus writes a standby status update. All three positions are set
// here: a client library's zero flush position means "the same as write" and
// would confirm what was only received. ask has the server answer at once.
func encodeStatus(dst *[statusLen]byte, received, confirmed lsn.LSN, now time.Time, ask bool) {
	dst[0] = 'd'
	binary.BigEndian.PutUint32(dst[1:], statusLen-1)
	dst[5] = 'r'
	binary.BigEndian.PutUint64(dst[6:], uint64(received))
	binary.BigEndian.PutUint64(dst[14:], uint64(confirmed))
	binary.BigEndian.PutUint64(dst[22:], uint64(confirmed))
	binary.BigEndian.PutUint64(dst[30:], uint64(now.UnixMicro()-postgresEpochMicros))
	dst[38] = 0
	if ask {
		dst[38] = 1
	}
}

// frameLen returns the whole length of the message that starts b, or 0 when b
// is too short to tell.
func frameLen(b []byte) (int, error) {
	if len(b) < headerLen {
		return 0, nil
	}
	n := binary.BigEndian.Uint32(b[1:])
	if n < 4 || n > maxMessage {
		return 0, fmt.Errorf("replication stream: message %q claims a length of %d bytes", b[0], n)
	}
	return int(n) + 1, nil
}

// exactReader never reads past the end of the backend message that is being
// read. With it below the client library's frontend, nothing of the stream is
// left in the library's buffer when START_REPLICATION has been answered, and the
// connection can be taken over.
type exactReader struct {
	r    io.Reader
	head [headerLen]byte
	have int // bytes of head read
	body int // bytes of the body still to come
}

func (e *exactReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if e.have < headerLen {
		n, err := e.r.Read(p[:min(len(p), headerLen-e.have)])
		e.have += copy(e.head[e.have:], p[:n])
		if e.have == headerLen {
			whole, ferr := frameLen(e.head[:])
			if ferr != nil {
				return n, ferr
			}
			if e.body = whole - headerLen; e.body == 0 {
				e.have = 0
			}
		}
		return n, err
	}
	n, err := e.r.Read(p[:min(len(p), e.body)])
	if e.body -= n; e.body == 0 {
		e.have = 0
	}
	return n, err
}
