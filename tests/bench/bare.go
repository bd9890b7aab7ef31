package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

const bareCommand = "bare"

// runBare is the baseline of the steady measurements: a loop that reads the slot
// with the same pacing, parses, and sends UNLINK user:<first column> over a plain
// socket. It has no gate, no checkpoint, no mapping, no retry, and never confirms:
// the least that can be done between a commit and a deleted key.
func runBare(args []string) error {
	fs := flag.NewFlagSet(bareCommand, flag.ContinueOnError)
	source := fs.String("source", "", "")
	slot := fs.String("slot", "", "")
	redisURL := fs.String("redis", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	u, err := url.Parse(*redisURL)
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := replication.OpenStream(ctx, replication.StreamOptions{
		URL: *source, Slot: *slot, Publication: publication, StatusInterval: time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	fmt.Println("streaming")
	err = bareLoop(ctx, stream, conn)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func bareLoop(ctx context.Context, stream *replication.Stream, conn net.Conn) error {
	dec := decoder.New()
	replies := bufio.NewReader(conn)
	var out []byte
	for {
		if err := stream.Fill(ctx); err != nil {
			return err
		}
		sent := 0
		out = out[:0]
		for {
			data, ok, err := stream.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			m, err := dec.Decode(data)
			if err != nil {
				return err
			}
			if m.Kind == decoder.KindBegin {
				stream.Committed(m.Begin.CommitTime)
			}
			if m.Kind == decoder.KindChange && len(m.Change.New) > 0 {
				id := m.Change.New[0].Data
				out = append(out, "*2\r\n$6\r\nUNLINK\r\n$"...)
				out = strconv.AppendInt(out, int64(len("user:")+len(id)), 10)
				out = append(out, "\r\nuser:"...)
				out = append(out, id...)
				out = append(out, "\r\n"...)
				sent++
			}
		}
		if sent == 0 {
			continue
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
		for range sent {
			if _, err := replies.ReadSlice('\n'); err != nil {
				return err
			}
		}
	}
}
