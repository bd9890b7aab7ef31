package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// frame wraps a payload as the server does.
func frame(kind byte, payload []byte) []byte {
	b := append([]byte{kind}, binary.BigEndian.AppendUint32(nil, uint32(len(payload)+4))...)
	return append(b, payload...)
}

func xlogData(end uint64, data string) []byte {
	p := []byte{'w'}
	p = binary.BigEndian.AppendUint64(p, end)
	p = binary.BigEndian.AppendUint64(p, end)
	p = binary.BigEndian.AppendUint64(p, 0)
	return frame('d', append(p, data...))
}

func keepalive(end uint64, reply byte) []byte {
	p := binary.BigEndian.AppendUint64([]byte{'k'}, end)
	p = binary.BigEndian.AppendUint64(p, 0)
	return frame('d', append(p, reply))
}

// fakeServer is the other end of a stream. What the stream writes arrives on
// statuses.
type fakeServer struct {
	conn     net.Conn
	statuses chan [3]lsn.LSN // written, flushed, applied
	asked    chan struct{}   // by a status that wants an answer
}

// streamTo returns a stream over a loopback connection to a fake server.
func streamTo(t *testing.T, interval time.Duration) (*Stream, *fakeServer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial, made := dialPaced()
	conn, err := dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	paced := made()
	paced.enabled = true
	f := &fakeServer{conn: peer, statuses: make(chan [3]lsn.LSN, 1000), asked: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var b [statusLen]byte
			if _, err := io.ReadFull(peer, b[:]); err != nil {
				return
			}
			if b[statusLen-1] == 1 {
				select {
				case f.asked <- struct{}{}:
				default:
				}
			}
			f.statuses <- [3]lsn.LSN{lsn.LSN(binary.BigEndian.Uint64(b[6:])), lsn.LSN(binary.BigEndian.Uint64(b[14:])), lsn.LSN(binary.BigEndian.Uint64(b[22:]))}
		}
	}()
	s := &Stream{conn: conn, paced: paced, buf: make([]byte, bufferSize), statusAt: time.Now().Add(interval),
		opts: StreamOptions{Slot: "s", StatusInterval: interval, Silence: time.Minute, Logger: slog.New(slog.DiscardHandler)}}
	t.Cleanup(func() { s.Close(); peer.Close(); <-done })
	return s, f
}

func (f *fakeServer) send(t *testing.T, b []byte) {
	t.Helper()
	if _, err := f.conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

// A server that says nothing although it is asked is given up; one that answers is not.
func TestServerThatSaysNothing(t *testing.T) {
	const silence = 600 * time.Millisecond
	s, f := streamTo(t, 20*time.Millisecond)
	s.opts.Silence = silence
	answered := make(chan struct{})
	go func() { // an answer to each question, for some time
		defer close(answered)
		for range 3 {
			<-f.asked
			_, _ = f.conn.Write(keepalive(0, 0))
		}
	}()
	for range 3 {
		if err := s.Fill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
	}
	<-answered
	var unavailable *UnavailableError
	if err := s.Fill(t.Context()); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "has said nothing for") {
		t.Errorf("error %v", err)
	}
}

// receive reads messages until n have come.
func receive(t *testing.T, s *Stream, n int) []string {
	t.Helper()
	var got []string
	for len(got) < n {
		if err := s.Fill(t.Context()); err != nil {
			t.Fatal(err)
		}
		for {
			data, ok, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			got = append(got, string(data))
		}
	}
	return got
}

func TestStreamJoinsWhatTheNetworkSplits(t *testing.T) {
	var all []byte
	want := []string{"a", "", "ccc"}
	for i, data := range want {
		all = append(all, xlogData(uint64(i+1), data)...)
		all = append(all, keepalive(uint64(i+1), 0)...)
	}
	for cut := 1; cut < len(all); cut += 7 {
		s, f := streamTo(t, time.Hour)
		go func() {
			_, _ = f.conn.Write(all[:cut])
			_, _ = f.conn.Write(all[cut:])
		}()
		got := receive(t, s, len(want))
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("cut at %d: message %d is %q", cut, i, got[i])
			}
		}
	}
}

func TestStreamTakesAMessageLargerThanItsBuffer(t *testing.T) {
	s, f := streamTo(t, time.Hour)
	huge := string(bytes.Repeat([]byte("x"), 3*bufferSize))
	go func() {
		_, _ = f.conn.Write(append(append(xlogData(1, "before"), xlogData(2, huge)...), xlogData(3, "after")...))
	}()
	if got := receive(t, s, 3); got[1] != huge || got[2] != "after" {
		t.Fatalf("got %d, %d, %q", len(got[0]), len(got[1]), got[2])
	}
	f.send(t, xlogData(4, "small"))
	receive(t, s, 1)
	if len(s.buf) != bufferSize {
		t.Errorf("the buffer stays at %d bytes", len(s.buf))
	}
}

func TestStreamAnswers(t *testing.T) {
	s, f := streamTo(t, 50*time.Millisecond)
	f.send(t, append(xlogData(100, "x"), keepalive(200, 1)...))
	receive(t, s, 1)
	s.Confirm(150)
	s.Confirm(120) // never back
	// While nothing comes, and while the caller waits for something else.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-f.statuses; <-f.statuses; cancel() }()
	if err := s.Fill(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	ready := make(chan struct{})
	go func() {
		<-f.statuses
		if st := <-f.statuses; st != [3]lsn.LSN{200, 150, 150} {
			t.Errorf("status %v; received, and twice what was confirmed", st)
		}
		close(ready)
	}()
	if err := s.Hold(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	s.Confirm(1 << 60)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	for st := range f.statuses {
		if st[1] > 200 {
			t.Fatalf("confirmed %v, which was never received", st[1])
		}
		if st[1] == 200 {
			break
		}
	}
	if s.KeepaliveLSN() != 200 || s.received != 200 {
		t.Errorf("keepalive %v, received %v", s.KeepaliveLSN(), s.received)
	}
}

func TestStreamEnds(t *testing.T) {
	encode := func(m pgproto3.BackendMessage) []byte {
		b, err := m.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tt := range []struct {
		name string
		send []byte
		is   error
	}{
		{"an error that comes as a message", encode(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "42704", Message: "publication does not exist"}), nil},
		{"the slot is taken", encode(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "55006", Message: "active"}), ErrSlotInUse},
		{"changes are skipped", encode(&pgproto3.NoticeResponse{Severity: "WARNING", Code: "55000", Message: "skipped"}), ErrChangesSkipped},
		{"end of copy", frame('c', nil), io.ErrUnexpectedEOF},
		{"ready for query", frame('Z', []byte{'I'}), io.ErrUnexpectedEOF},
		{"an unknown message", frame('?', nil), nil},
		{"an impossible length", []byte{'d', 0, 0, 0, 1}, nil},
		{"copy data of another kind", frame('d', []byte("zzz")), nil},
		{"closed", nil, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, f := streamTo(t, time.Hour)
			if tt.send == nil {
				f.conn.Close()
			} else {
				f.send(t, tt.send)
			}
			err := s.Fill(t.Context())
			if err == nil {
				_, _, err = s.Next()
			}
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %v", err, tt.is)
			}
		})
	}
	s, f := streamTo(t, time.Hour)
	f.send(t, append(encode(&pgproto3.NoticeResponse{Severity: "WARNING", Code: "01000"}), append(frame('S', []byte("a\x00b\x00")), xlogData(1, "x")...)...))
	receive(t, s, 1)
}

func TestStreamNoticesABacklogAndItsEnd(t *testing.T) {
	s, f := streamTo(t, time.Hour)
	late := func(by time.Duration) []byte {
		b := xlogData(1, "x")
		binary.BigEndian.PutUint64(b[headerLen+17:], uint64(time.Now().Add(by).UnixMicro()-postgresEpochMicros))
		return b
	}
	next := func(by time.Duration) {
		f.send(t, late(by))
		receive(t, s, 1)
		s.Committed(time.Now())
	}
	next(0)
	if s.CatchingUp() {
		t.Fatal("a transaction that was sent at once is taken for a backlog")
	}
	next(time.Second)
	if !s.CatchingUp() {
		t.Fatal("a transaction that was sent a second late is not taken for a backlog")
	}
	for range 200 {
		if next(0); !s.CatchingUp() {
			return
		}
	}
	t.Error("catching up goes on although nothing is late")
}

// With it below the library's frontend, the library reads nothing ahead.
func TestExactReaderStopsAtTheEndOfAMessage(t *testing.T) {
	first, second := frame('W', []byte{0, 0, 0}), frame('d', bytes.Repeat([]byte("y"), 5000))
	for name, r := range map[string]io.Reader{
		"whole":  bytes.NewReader(append(append([]byte{}, first...), second...)),
		"pieces": iotest.OneByteReader(bytes.NewReader(append(append([]byte{}, first...), second...))),
	} {
		e := &exactReader{r: r}
		front := pgproto3.NewFrontend(e, io.Discard)
		if _, err := front.Receive(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := front.ReadBufferLen(); n != 0 {
			t.Errorf("%s: %d bytes were read ahead", name, n)
		}
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(rest, second) {
			t.Errorf("%s: %d bytes are left, want %d", name, len(rest), len(second))
		}
	}
}

// Small reads, as TLS makes them, get every byte in order through the pacing.
func TestPacedReadsLoseNothing(t *testing.T) {
	s, f := streamTo(t, time.Hour)
	want := make([]byte, 2<<20)
	for i := range want {
		want[i] = byte(i * 7 / 3)
	}
	go func() {
		_, _ = f.conn.Write(want)
		f.conn.Close()
	}()
	got := make([]byte, 0, len(want))
	for {
		b := make([]byte, 1+len(got)%900)
		n, err := s.paced.Read(b)
		got = append(got, b[:n]...)
		if err != nil {
			break
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d came, or not in order", len(got), len(want))
	}
}
