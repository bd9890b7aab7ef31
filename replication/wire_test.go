package replication

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestStatusUpdateOnTheWire(t *testing.T) {
	var b [statusLen]byte
	// One second and a microsecond after the year 2000 began.
	encodeStatus(&b, 0x0102030405060708, 0x1112131415161718, time.Unix(946684801, 1000), false)
	want := "64" + "00000026" + "72" + // CopyData, 38 bytes, a status update
		"0102030405060708" + "1112131415161718" + "1112131415161718" + // written, flushed, applied
		"00000000000f4241" + "00" // its time; no reply wanted
	if got := hex.EncodeToString(b[:]); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	// A zero flush position would be taken for the written one by client libraries.
	encodeStatus(&b, 9, 0, time.Now(), true)
	if !bytes.Equal(b[14:30], make([]byte, 16)) {
		t.Errorf("nothing is confirmed, but %x is sent", b[14:30])
	}
	if b[statusLen-1] != 1 {
		t.Error("no answer is asked for")
	}
}

func TestFrameLength(t *testing.T) {
	for _, tt := range []struct {
		head string
		want int
		ok   bool
	}{
		{"", 0, true}, {"64", 0, true}, {"64000000", 0, true}, // too short to tell
		{"6400000004", 5, true}, {"6400000005", 6, true}, {"6440000000", 1<<30 + 1, true},
		{"6400000003", 0, false}, {"6400000000", 0, false}, {"6440000001", 0, false}, {"64ffffffff", 0, false},
	} {
		b, err := hex.DecodeString(tt.head)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := frameLen(b); n != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: %d, %v", tt.head, n, err)
		}
	}
}

// chunks gives at most as many bytes at a time as the schedule says.
type chunks struct {
	data  []byte
	sizes []int
	at    int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(c.data), c.sizes[c.at%len(c.sizes)])
	c.at++
	copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

// However the network splits and the library asks: no read takes bytes of two
// messages, and none is lost.
func TestExactReaderInPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []byte
		ends := map[int]bool{0: true}
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 40), 1, 8).Draw(t, "messages") {
			all = append(all, frame('d', make([]byte, n))...)
			ends[len(all)] = true
		}
		e := &exactReader{r: &chunks{data: all, sizes: rapid.SliceOfN(rapid.IntRange(1, 20), 1, 5).Draw(t, "network")}}
		asks := rapid.SliceOfN(rapid.IntRange(1, 64), 1, 5).Draw(t, "library")
		at := 0
		for i := 0; ; i++ {
			n, err := e.Read(make([]byte, asks[i%len(asks)]))
			for inside := at + 1; inside < at+n; inside++ {
				if ends[inside] {
					t.Fatalf("a read of %d bytes at %d goes past the message's end at %d", n, at, inside)
				}
			}
			if at += n; err != nil {
				break
			}
		}
		if at != len(all) {
			t.Fatalf("%d of %d bytes", at, len(all))
		}
	})
}

func TestStreamAtEveryByte(t *testing.T) {
	all := append(append(xlogData(1, "first"), keepalive(2, 1)...), xlogData(3, "second")...)
	for cut := range all {
		s := &Stream{buf: make([]byte, bufferSize)}
		var got []string
		for _, part := range [][]byte{all[:cut], all[cut:]} {
			if err := s.makeRoom(); err != nil {
				t.Fatal(err)
			}
			s.w += copy(s.buf[s.w:], part)
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
		if len(got) != 2 || got[0] != "first" || got[1] != "second" || s.received != 3 || s.keepalive != 2 || !s.replyDue {
			t.Fatalf("cut at %d: %q, received %v", cut, got, s.received)
		}
	}
}

// pair connects through the paced dialer.
func pair(t *testing.T, network, address string) (*pacedConn, net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial, made := dialPaced()
	conn, err := dial(t.Context(), network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); peer.Close() })
	paced := made()
	paced.enabled = true
	return paced, peer
}

func newStream(conn net.Conn, paced *pacedConn, interval time.Duration) *Stream {
	return &Stream{conn: conn, paced: paced, buf: make([]byte, bufferSize), statusAt: time.Now().Add(interval),
		opts: StreamOptions{Slot: "s", StatusInterval: interval, Silence: time.Minute, Logger: slog.New(slog.DiscardHandler)}}
}

func TestStreamOverAUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "s") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	paced, peer := pair(t, "unix", filepath.Join(dir, "s"))
	if paced.pause != catchUpPauseUnix {
		t.Error("a Unix socket is not known for one")
	}
	s := newStream(paced, paced, time.Hour)
	var all []byte
	const n = 20_000
	for i := range uint64(n) {
		all = append(all, xlogData(i+1, "0123456789")...)
	}
	go func() { _, _ = peer.Write(all) }()
	if got := receive(t, s, n); len(got) != n || s.received != n {
		t.Errorf("%d messages up to %v", len(got), s.received)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Fill(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A flood is read with pauses; when it ends, so do they.
func TestPacingFollowsTheFlood(t *testing.T) {
	c, peer := pair(t, "tcp", "127.0.0.1:0")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for chunk := make([]byte, 64<<10); ; {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := peer.Write(chunk); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, bufferSize)
	for read := 0; !c.catchUp; {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if read += n; read > 1<<30 {
			t.Fatal("a gigabyte at once is not taken for a flood")
		}
	}
	close(stop)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	writerEnded := done
	for c.catchUp {
		select {
		case <-writerEnded: // then a trickle, each byte of which is read
			writerEnded = nil
		default:
		}
		if writerEnded == nil {
			if _, err := peer.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatalf("still catching up: %v", err)
		}
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), DNSNames: []string{"db"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TLS reads a header, then a record: small reads, which the pacing serves from its own
// buffer. Deadlines (status updates) fall between them all the time.
func TestStreamUnderTLS(t *testing.T) {
	cert := certificate(t)
	roots := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(leaf)
	paced, peer := pair(t, "tcp", "127.0.0.1:0")
	paced.enabled = false // as while the session starts
	server := tls.Server(peer, &tls.Config{Certificates: []tls.Certificate{cert}})
	client := tls.Client(paced, &tls.Config{RootCAs: roots, ServerName: "db"})
	shaken := make(chan error, 1)
	go func() { shaken <- server.HandshakeContext(t.Context()) }()
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	paced.enabled = true
	s := newStream(client, paced, 2*time.Millisecond)
	const n = 500
	message := func(i int) string { return string(bytes.Repeat([]byte{byte(i)}, 1+i*37%9000)) }
	go func() {
		for i := range n {
			if _, err := server.Write(xlogData(uint64(i+1), message(i))); err != nil {
				return
			}
		}
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, server) // the status updates
	}()
	for i, data := range receive(t, s, n) {
		if data != message(i) {
			t.Fatalf("message %d came wrong, with %d bytes", i, len(data))
		}
	}
	s.Close()
	<-done
}
