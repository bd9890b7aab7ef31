package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/charset"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// bufferSize is how much of the stream is read at once. Smaller buffers cost
// throughput (docs/performance.md).
const bufferSize = 256 << 10

// StreamOptions says what to stream and how often to report.
type StreamOptions struct {
	URL         string
	Slot        string
	Publication string
	// StatusInterval is the longest silence towards the server. It must be well
	// below wal_sender_timeout, after which the server drops a silent client.
	StatusInterval time.Duration
	// Silence is for how long the server may say nothing while it is listened to, although it
	// is asked: then the connection is lost. Nothing else finds a peer that is gone without a
	// word, behind a router that has forgotten the connection or a proxy that hangs.
	Silence time.Duration
	// OnStatus is called after each status update, by the goroutine that owns the stream;
	// it must be quick. May be nil.
	OnStatus func()
	// Withhold says, for each status update, whether it may confirm nothing; see
	// StandbyWatch. May be nil.
	Withhold func() bool
	Logger   *slog.Logger

	begin func(ctx context.Context, conn *pgconn.PgConn, slot, publication string) (net.Conn, error) // nil: startReplication
}

// Stream is one attachment to the slot. One goroutine owns it: it calls Fill,
// then Next until there is nothing more, and Hold instead of blocking anywhere
// else, so that the server is answered on time whatever the stages behind do.
//
// Stream does not decode, does not know transactions, and does not decide what
// may be confirmed; it only refuses to confirm what it never received.
type Stream struct {
	conn  net.Conn
	paced *pacedConn // below conn
	opts  StreamOptions
	text  *charset.Encoding // of the server; nil for UTF-8
	buf   []byte
	r, w  int // unread bytes are buf[r:w]

	serverTime int64 // when the last XLogData was sent, by the server's clock

	received  lsn.LSN // highest position seen
	keepalive lsn.LSN // walEnd of the newest keepalive that Next passed
	confirmed lsn.LSN // what the status updates confirm
	replyDue  bool
	asking    bool      // the next update wants an answer
	statusAt  time.Time // when the next update is due at the latest
}

// OpenStream attaches to the slot. An error for which errors.Is(err, ErrSlotInUse)
// means that another process holds it: wait and try again.
func OpenStream(ctx context.Context, o StreamOptions) (*Stream, error) {
	conn, paced, err := dialReplication(ctx, o.URL)
	if err != nil {
		return nil, err
	}
	if o.begin == nil {
		o.begin = startReplication
	}
	text, err := charset.Server(conn.ParameterStatus(serverEncoding))
	var netConn net.Conn
	if err == nil {
		netConn, err = o.begin(ctx, conn, o.Slot, o.Publication)
	}
	if err != nil {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closeCtx) // the error above is the one to report
		return nil, classify(readable(err, text))
	}
	if o.StatusInterval <= 0 {
		o.StatusInterval = 10 * time.Second
	}
	if o.Silence <= 0 {
		o.Silence = maxSilence
	}
	s := &Stream{
		conn:     netConn,
		paced:    paced,
		text:     text,
		opts:     o,
		buf:      make([]byte, bufferSize),
		statusAt: time.Now().Add(o.StatusInterval),
	}
	paced.enabled = true
	return s, nil
}

// Encoding converts what the stream carries into UTF-8; nil where it is UTF-8.
func (s *Stream) Encoding() decoder.Encoding {
	if s.text == nil {
		return nil
	}
	return s.text
}

// Close drops the connection. Unconfirmed transactions will be sent again.
func (s *Stream) Close() error { return s.conn.Close() }

// Confirm says that everything below l is done: every invalidation applied and
// the checkpoint that says so stored. It never goes back, and what was not yet
// received is not confirmed, since the server believes any position.
func (s *Stream) Confirm(l lsn.LSN) {
	s.confirmed = max(s.confirmed, min(l, s.received))
}

// Committed tells when the transaction of the last message committed, by the
// server's clock, and returns how long after that it was sent. One that was sent long
// after is the sign of a backlog, which bytes alone do not show: read without
// pauses, a backlog trickles.
func (s *Stream) Committed(at time.Time) (age time.Duration) {
	age = time.Duration(s.serverTime-(at.UnixMicro()-postgresEpochMicros)) * time.Microsecond
	s.paced.behind(age > backlogAge)
	return age
}

// CatchingUp says that there is a backlog: work is better done in bulk than at
// once.
func (s *Stream) CatchingUp() bool { return s.paced.catchUp }

// ReceivedLSN is the highest position that the server has mentioned.
func (s *Stream) ReceivedLSN() lsn.LSN { return s.received }

// ConfirmedLSN is what status updates confirm from now on.
func (s *Stream) ConfirmedLSN() lsn.LSN { return s.confirmed }

// KeepaliveLSN is the end of WAL as the last keepalive before the current
// message told it: everything below it that concerns this slot has been sent.
func (s *Stream) KeepaliveLSN() lsn.LSN { return s.keepalive }

// Fill blocks until at least one whole message is buffered, answering the
// server meanwhile. It returns ctx.Err() when ctx ends.
func (s *Stream) Fill(ctx context.Context) error {
	if err := s.makeRoom(); err != nil {
		return err
	}
	// A deadline in the past interrupts a read that is under way.
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	heard := time.Now() // until then nobody listened
	for {
		silent := time.Since(heard)
		if silent >= s.opts.Silence {
			return &UnavailableError{Op: "read the log", Err: fmt.Errorf("replication stream of slot %s after %s: the server has said nothing for %s, although it was asked", s.opts.Slot, s.received, silent.Round(time.Millisecond))}
		}
		s.asking = silent >= s.opts.Silence/3
		if err := s.writeDueStatus(); err != nil {
			return err
		}
		if err := s.conn.SetReadDeadline(s.statusAt); err != nil {
			return fmt.Errorf("replication stream of slot %s: %w", s.opts.Slot, err)
		}
		if err := ctx.Err(); err != nil { // cancelled before the deadline was set
			return err
		}
		n, err := s.conn.Read(s.buf[s.w:])
		s.w += n
		if n > 0 {
			heard = time.Now()
			whole, ferr := s.buffered()
			if ferr != nil {
				return ferr
			}
			if whole {
				return nil
			}
			if err := s.makeRoom(); err != nil {
				return err
			}
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("replication stream of slot %s: the server closed the connection after %s: %w", s.opts.Slot, s.received, io.ErrUnexpectedEOF)
			}
			return fmt.Errorf("replication stream of slot %s after %s: %w", s.opts.Slot, s.received, err)
		}
	}
}

// Next returns the payload of the next buffered XLogData, one pgoutput message,
// valid until the next Fill. ok is false when no whole message is buffered.
func (s *Stream) Next() (data []byte, ok bool, err error) {
	for s.w-s.r >= headerLen {
		b := s.buf[s.r:s.w]
		n, err := frameLen(b)
		if err != nil {
			return nil, false, err
		}
		if n > len(b) {
			return nil, false, nil
		}
		s.r += n
		if b[0] == 'd' && n >= headerLen+xlogDataLen && b[headerLen] == 'w' {
			if end := lsn.LSN(binary.BigEndian.Uint64(b[headerLen+9:])); end > s.received {
				s.received = end
			}
			s.serverTime = int64(binary.BigEndian.Uint64(b[headerLen+17:]))
			return b[headerLen+xlogDataLen : n : n], true, nil
		}
		if err := s.control(b[:n:n]); err != nil {
			return nil, false, err
		}
	}
	return nil, false, nil
}

// control handles every message that is not XLogData.
func (s *Stream) control(b []byte) error {
	body := b[headerLen:]
	switch b[0] {
	case 'd':
		if len(body) != keepaliveLen || body[0] != 'k' {
			return fmt.Errorf("replication stream of slot %s: CopyData of %d bytes is neither XLogData nor a keepalive", s.opts.Slot, len(body))
		}
		end := lsn.LSN(binary.BigEndian.Uint64(body[1:]))
		s.received = max(s.received, end)
		s.keepalive = max(s.keepalive, end)
		s.replyDue = s.replyDue || body[keepaliveLen-1] != 0
		return nil
	case 'E':
		// The client library hands this over as a message with a nil error, and
		// the connection would then idle for ever.
		var e pgproto3.ErrorResponse
		if err := e.Decode(body); err != nil {
			return fmt.Errorf("replication stream of slot %s: error response: %w", s.opts.Slot, err)
		}
		return classify(fmt.Errorf("replication stream of slot %s after %s: %w", s.opts.Slot, s.received, readable(pgconn.ErrorResponseToPgError(&e), s.text)))
	case 'N':
		var n pgproto3.NoticeResponse
		if err := n.Decode(body); err != nil {
			return fmt.Errorf("replication stream of slot %s: notice: %w", s.opts.Slot, err)
		}
		if n.Code == "55000" {
			return fmt.Errorf("replication stream of slot %s: %w: the server says %q", s.opts.Slot, ErrChangesSkipped, legible(n.Message, s.text))
		}
		s.opts.Logger.Warn("notice from the walsender", "slot", s.opts.Slot, "code", n.Code, "message", legible(n.Message, s.text))
		return nil
	case 'S': // ParameterStatus: a reload on the server; ours are pinned
		return nil
	case 'c', 'C', 'Z':
		return fmt.Errorf("replication stream of slot %s: the server ended the stream after %s: %w", s.opts.Slot, s.received, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("replication stream of slot %s: unexpected message %q", s.opts.Slot, b[0])
}

// Hold waits until ready is closed or receives, answering the server meanwhile
// without reading: the server is held back by its full socket and nothing is
// dropped.
func (s *Stream) Hold(ctx context.Context, ready <-chan struct{}) error {
	for {
		if err := s.writeDueStatus(); err != nil {
			return err
		}
		timer := time.NewTimer(time.Until(s.statusAt))
		select {
		case <-ready:
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// Flush sends a status update now.
func (s *Stream) Flush() error { return s.writeStatus() }

func (s *Stream) writeDueStatus() error {
	if s.replyDue || !time.Now().Before(s.statusAt) {
		return s.writeStatus()
	}
	return nil
}

func (s *Stream) writeStatus() error {
	now := time.Now()
	var b [statusLen]byte
	confirmed := s.confirmed
	if s.opts.Withhold != nil && s.opts.Withhold() {
		confirmed = 0 // no flushed position is reported: the slot stays where it is, and the server waits for others
	}
	encodeStatus(&b, s.received, confirmed, now, s.asking)
	if err := s.conn.SetWriteDeadline(now.Add(s.opts.StatusInterval + time.Second)); err != nil {
		return fmt.Errorf("status update for slot %s: %w", s.opts.Slot, err)
	}
	if _, err := s.conn.Write(b[:]); err != nil {
		return fmt.Errorf("status update for slot %s: %w", s.opts.Slot, err)
	}
	if s.opts.OnStatus != nil {
		s.opts.OnStatus()
	}
	s.replyDue = false
	s.statusAt = now.Add(s.opts.StatusInterval)
	return nil
}

func (s *Stream) buffered() (bool, error) {
	n, err := frameLen(s.buf[s.r:s.w])
	return n > 0 && s.w-s.r >= n, err
}

// makeRoom moves the unread tail to the buffer's start, and grows the buffer for
// one message that is larger than it; afterwards it goes back to its size, so
// that one huge row does not stay in memory.
func (s *Stream) makeRoom() error {
	tail := s.buf[s.r:s.w]
	need, err := frameLen(tail)
	if err != nil {
		return err
	}
	switch {
	case need > len(s.buf):
		grown := make([]byte, need+headerLen)
		copy(grown, tail)
		s.buf = grown
	case len(s.buf) > bufferSize && max(need, len(tail)) <= bufferSize:
		small := make([]byte, bufferSize)
		copy(small, tail)
		s.buf = small
	case s.r > 0:
		copy(s.buf, tail)
	}
	s.r, s.w = 0, len(tail)
	return nil
}
