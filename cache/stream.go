package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	streamBlock = 250 * time.Millisecond // a read waits for so long
	streamSpare = time.Second            // for the answer; without it go-redis gives a read that blocks ten seconds more
	streamBatch = 100
	// streamIdle reads without a message in a row are odd, since heartbeats make some: the
	// stream may have been lost, and begin anew below the place that is followed.
	streamIdle  = 4
	streamPause = 500 * time.Millisecond // after an error
)

// l1Stream follows the daemon's invalidation stream. It belongs to one goroutine.
//
// Nothing has to be noticed in time: as long as no message comes, what is in memory is
// proved to be fresh as of the last one only, and soon by none. What has to be noticed is a
// message that was missed, and for that they are numbered.
type l1Stream struct {
	l1  *l1
	rdb redis.UniversalClient
	key string
	log *slog.Logger

	id      string // of the last message
	session string
	n       uint64
}

// run follows the stream until ctx ends.
func (s *l1Stream) run(ctx context.Context) {
	failed, placed, idle := false, false, 0
	for ctx.Err() == nil {
		err := s.follow(ctx, &placed, &idle)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failed = false
			continue
		}
		s.l1.doubt()
		if !failed {
			s.log.Warn("the invalidation stream cannot be read; when that lasts, nothing is served from memory", "key", s.key, "error", err)
		}
		failed = true
		if sleep(ctx, streamPause) != nil {
			return
		}
	}
}

// follow takes the next step: finds its place, or reads on from it.
func (s *l1Stream) follow(ctx context.Context, placed *bool, idle *int) error {
	if !*placed || *idle >= streamIdle {
		moved, err := s.place(ctx, !*placed)
		if err != nil {
			return err
		}
		*placed, *idle = true, 0
		if moved {
			return nil
		}
	}
	bounded, cancel := context.WithTimeout(ctx, streamBlock+streamSpare)
	defer cancel()
	streams, err := s.rdb.XRead(bounded, &redis.XReadArgs{Streams: []string{s.key, s.id}, Count: streamBatch, Block: streamBlock}).Result()
	if errors.Is(err, redis.Nil) {
		*idle++
		return nil
	}
	if err != nil {
		return err
	}
	*idle = 0
	for _, stream := range streams {
		for _, m := range stream.Messages {
			if err := s.handle(m); err != nil {
				*placed = false
				return err
			}
		}
	}
	return nil
}

// place finds the newest message, from which on the stream is followed; moved says that it
// is not the one that was followed so far.
func (s *l1Stream) place(ctx context.Context, start bool) (moved bool, err error) {
	newest, err := s.rdb.XRevRangeN(ctx, s.key, "+", "-", 1).Result()
	if err != nil {
		return false, err
	}
	id := "0-0"
	if len(newest) > 0 {
		id = newest[0].ID
	}
	if !start && !before(id, s.id) {
		return false, nil // what is newer is read on the way
	}
	s.l1.fresh.Store(0)
	why := flushGap
	if start {
		why = flushStart
	}
	s.l1.flush(why)
	s.id, s.session, s.n = id, "", 0
	if len(newest) > 0 {
		m, err := parseStreamMessage(newest[0])
		if err != nil {
			return false, err
		}
		s.session, s.n = m.session, m.n
		s.l1.fresh.Store(m.fresh)
	}
	return true, nil
}

func (s *l1Stream) handle(raw redis.XMessage) error {
	m, err := parseStreamMessage(raw)
	if err != nil {
		return err
	}
	s.l1.metrics.messages.Inc()
	switch {
	case s.session == "": // none was there, or it was lost unread
		s.l1.flush(flushStart)
	case m.session != s.session || m.n != s.n+1:
		s.l1.flush(flushGap)
	}
	s.id, s.session, s.n = raw.ID, m.session, m.n
	switch {
	case m.all:
		s.l1.flush(flushPurge)
	case len(m.keys) > 0:
		s.l1.drop(m.keys...)
	}
	s.l1.fresh.Store(m.fresh) // last: it speaks for this message too
	return nil
}

// before says whether the id a is older than b. They are two numbers: ms-seq.
func before(a, b string) bool {
	ms := func(id string) (ms, seq uint64) {
		left, right, _ := strings.Cut(id, "-")
		ms, _ = strconv.ParseUint(left, 10, 64) // as Redis has made them
		seq, _ = strconv.ParseUint(right, 10, 64)
		return ms, seq
	}
	a1, a2 := ms(a)
	b1, b2 := ms(b)
	return a1 < b1 || a1 == b1 && a2 < b2
}

type streamMessage struct {
	session string
	n       uint64
	fresh   int64 // us since 1970; 0 when the daemon does not know
	all     bool
	keys    []string
}

func parseStreamMessage(raw redis.XMessage) (m streamMessage, err error) {
	text := func(field string) string {
		v, _ := raw.Values[field].(string)
		return v
	}
	m.session, m.all = text("s"), text("p") != ""
	var fresh uint64
	var err1, err2 error
	m.n, err1 = strconv.ParseUint(text("n"), 16, 64)
	fresh, err2 = strconv.ParseUint(text("f"), 16, 63)
	if m.session == "" || err1 != nil || err2 != nil {
		return m, fmt.Errorf("message %s of the invalidation stream cannot be read: is it of another version?", raw.ID)
	}
	m.fresh = int64(fresh)
	if keys := text("k"); keys != "" {
		m.keys = strings.Split(keys, "\n")
	}
	return m, nil
}
